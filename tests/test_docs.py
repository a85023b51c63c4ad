"""What the README and the documentation show works: configurations hold, commands parse, Python runs, pages build."""

import configparser
import csv
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from typer.testing import CliRunner

from medae.batch.settings import BatchSettings
from medae.cli import app
from medae.data import Case
from medae.experiment import Experiment
from medae.tasks import Anomaly
from medae_service.answering import PARAMETERS
from medae_service.description import openapi
from medae_service.settings import ServiceSettings
from tests.conftest import untrained_package
from tests.service_parts import client_of, png, segmenter

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    # every fence is read, so that the end of one block is not taken for the beginning of the next
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page, "") for line in block.splitlines() if line and not line.startswith("#")]


def of(program: str) -> list[str]:
    """Every line of every page that calls a program."""
    return sorted({line for page in PAGES for line in commands(page) if line.split()[0] == program})


def parse(arguments: list[str]) -> None:
    """Every command and option exists; the work itself is not begun."""
    import typer

    from medae.cli import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(command.name, arguments)


@by_name
def test_configurations_are_valid(page: Path) -> None:
    """Of an experiment, of a service, or (without a name) what differs from the experiment above it."""
    experiment: dict[str, Any] = {}
    for block in blocks(page, "yaml"):
        data = yaml.safe_load(block)
        if data is None or {"scrape_configs", "apiVersion"} & data.keys():
            continue
        if "inputs" in data:
            BatchSettings.model_validate(data)
            continue
        if "packages" in data:
            ServiceSettings.model_validate(data)
            continue
        experiment = data if "name" in data else experiment | data
        Experiment.model_validate(experiment)


@pytest.mark.parametrize(
    "changes",
    [
        "{task: {kind: restoration, corruption: {kind: gaussian, level: [0.02, 0.1]}}, network: {kind: dncnn},"
        " objectives: [{kind: mse}], data: {kind: folder, root: my-data, images: images/*.png}}",
        "{task: {kind: anomaly}, network: {kind: vae}, objectives: [{kind: mse}, {kind: kl}]}",
    ],
)
def test_the_other_tasks_of_the_readme_need_no_more_than_is_said(changes: str) -> None:
    Experiment.model_validate(yaml.safe_load(blocks(ROOT / "README.md", "yaml")[0]) | yaml.safe_load(changes))


@pytest.mark.parametrize("line", of("medae"))
def test_commands_parse(line: str) -> None:
    parse(shlex.split(line)[1:])


def test_a_command_that_does_not_parse_is_found() -> None:
    with pytest.raises(Exception, match="--oven"):
        parse(["train", "x.yaml", "--oven", "200"])
    with pytest.raises(KeyError):
        parse(["token", "bake"])


@pytest.mark.parametrize("line", of("curl"))
def test_what_curl_asks_is_answered(line: str) -> None:
    words = shlex.split(line)
    (url,) = [word for word in words[1:] if "/v1/" in word]
    parts = urlsplit(url if "://" in url else f"http://{url}")
    assert "post" in openapi()["paths"][parts.path]
    endpoint = {"denoise": "restore"}.get(name := parts.path.rpartition("/")[2], name)
    assert {key for key, _ in parse_qsl(parts.query)} <= set(PARAMETERS[endpoint])  # type: ignore[index]
    assert all(words[at + 1].startswith("file=@") for at, word in enumerate(words) if word == "-F")


@pytest.mark.parametrize("line", of("docker"))
def test_docker_commands_name_what_exists(line: str) -> None:
    words = shlex.split(line)
    if words[1] == "build":
        stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert words[words.index("--target") + 1] in stages
    else:
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        service = compose["services"][words[-1]]
        profiles = [words[at + 1] for at, word in enumerate(words) if word == "--profile"]
        assert profiles == service.get("profiles", [])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in of("make")}
    assert named and named <= targets


def test_a_case_list_has_the_columns_of_a_case() -> None:
    (text,) = blocks(ROOT / "docs/your-data.md", "csv")
    for row in csv.DictReader(io.StringIO(text)):
        Case.model_validate({name: value for name, value in row.items() if value})


@pytest.mark.parametrize("page", ["deploy.md", "batch.md"])
def test_the_unit_starts_what_exists(page: str) -> None:
    (text,) = [text for text in blocks(ROOT / "docs" / page, "ini") if "ExecStart" in text]
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "medae"
    parse(arguments)


def test_metrics_are_called_what_they_are_called() -> None:
    from prometheus_client import REGISTRY

    import medae_service.metrics  # noqa: F401  # registers them

    ours = {metric.name: metric.type for metric in REGISTRY.collect() if metric.name.startswith("medae_")}
    there = {name + ("_total" if kind == "counter" else "") for name, kind in ours.items()}
    assert set(re.findall(r"^\| `(medae_\w+)`", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE)) == there


SNIPPETS = [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the snippets find: packages and images where the demo and a training leave them."""
    folder = tmp_path_factory.mktemp("workplace")
    package = segmenter("nuclei-unet")
    for name in ("demo/models/nuclei-unet/package", "runs/my-nuclei/package"):
        package.save(folder / name)
    vae = {"kind": "vae", "features": (4, 6), "latent_channels": 3}
    untrained_package(Anomaly(), vae).save(folder / "demo/models/anomaly-tissue/package")
    (folder / "demo/inputs").mkdir()
    for name in ("tissue.png", "tissue-noisy.png"):
        (folder / "demo/inputs" / name).write_bytes(png())
    words = ["batch", "run", folder / "runs/my-nuclei/package", folder / "demo/inputs", "--out", folder / "night"]
    done = CliRunner().invoke(app, [*map(str, words), "--workers", "0"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    from tests.test_client import listening

    with listening(client_of(segmenter("nuclei-unet")).app) as address:
        yield address


@pytest.mark.parametrize(("page", "number"), SNIPPETS, ids=[f"{page.name}-{number}" for page, number in SNIPPETS])
def test_python_runs(page: Path, number: int, workplace: Path, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(page, "python")[number].replace("http://localhost:3000", service)
    monkeypatch.chdir(workplace)
    exec(compile(code, f"{page.name}, block {number + 1}", "exec"), {"__name__": "snippet"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; --strict fails on a link or an anchor that leads nowhere (with --quiet it would not)."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **QUIET}, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


QUIET = {"NO_MKDOCS_2_WARNING": "1"}


class Asked(HTMLParser):
    """Whatever a browser would fetch for a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "srcset", "data", "poster") + (("href",) if tag in ("link", "image", "use") else ())
        self.urls += [value or "" for name, value in attrs if name in names]


def test_pages_ask_no_third_party(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {f"{page.stem}.html" for page in PAGES[1:]} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text()
        asked = Asked(text).urls
        assert asked and not [url for url in asked if re.match(r"(\w+:)?//", url)], page.name
        assert "integrity=" not in text and "googletagmanager" not in text
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", style.read_text()), style.name


def test_generated_pages_say_what_the_program_says(site: Path) -> None:
    text = {name: (site / f"{name}.html").read_text() for name in ("configs", "service", "commands", "troubleshooting")}
    assert not [name for name in text if "generated:" in text[name]]
    for definition in Experiment.model_json_schema()["$defs"].values():
        for field in definition.get("properties", {}):
            assert f"<code>{field}</code>" in text["configs"] or field == "kind"
    for path, methods in openapi()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}<" in text["service"]
    for field in ServiceSettings.model_fields:
        assert f"<code>{field}</code>" in text["service"]
    assert ">medae token revoke<" in text["commands"] and "--allowed-host" in text["commands"]
    assert "decode-limit" in text["troubleshooting"]
