"""The project as a whole: which way imports point and what they cost, how long things are, whether papers are true."""

import ast
import importlib
import os
import re
import resource
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medae
from medae import shipped

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("medae/**/*.py"), *ROOT.glob("services/**/*.py")])
PAPERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "configs/README.md"]

# From the ground up; a room imports from its own row's room and from rows above it in this list, never from below.
LAYERS = (
    ("errors",),
    ("settings", "shipped", "pseudonyms", "machine"),
    ("image", "verdict"),
    ("resample",),
    ("io",),
    ("preparation", "tiles", "pictures"),
    ("features",),
    ("scores", "metrics", "calibration", "record", "checks"),
    ("data",),
    ("tasks",),
    ("networks",),
    ("objectives", "suitability"),
    ("experiment", "package"),
    ("backends", "gate"),
    ("predictor",),
    ("answers", "memory", "report", "uncertainty"),
    ("evaluation", "export", "fitting", "latent"),
    ("training", "rescoring"),
    ("batch", "medae_service", "client"),
    ("demo", "doctor", "inspection"),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def module_name(path: Path) -> str:
    base = ROOT / "services" if "services" in path.parts else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str | None:
    """The room of a module of ours: `medae.io.dicom` -> `io`; None for the package itself and for third parties."""
    parts = module.split(".")
    if parts[0] == "medae_service":
        return parts[0]
    return parts[1] if parts[0] == "medae" and len(parts) > 1 else None


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at any depth, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path).split(".")
            package = package if path.name == "__init__.py" else package[:-1]
            start = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*start, node.module] if node.module else start)
            # `from medae import answers` names a room; `from medae.io import read_image` does not
            yield from ((node.lineno, f"{name}.{alias.name}" if name == "medae" else name) for alias in node.names)


def upward_arrows() -> Iterator[str]:
    for path in SOURCES:
        here = room(module_name(path))
        for line, name in imported(path):
            there = room(name)
            if here is None or there is None or there == here or not (there in RANK or is_module(there)):
                continue
            if RANK[there] >= RANK[here]:
                yield f"{path.relative_to(ROOT)}:{line}: {here} imports {there}"


def is_module(name: str) -> bool:
    return (ROOT / "medae" / name).is_dir() or (ROOT / "medae" / f"{name}.py").is_file()


def test_every_room_has_its_place() -> None:
    rooms = {found for path in SOURCES if (found := room(module_name(path))) is not None}
    assert rooms <= RANK.keys(), f"not in LAYERS: {sorted(rooms - RANK.keys())}"


def test_imports_point_down_only() -> None:
    assert not list(upward_arrows())


def test_the_arrow_test_sees_relative_and_nested_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "medae" / "io"
    folder.mkdir(parents=True)
    file = folder / "nifti.py"
    file.write_text(
        "from .answer import x\nfrom .. import cli\ndef f():\n    from medae import demo\n    import medae.cli\n"
    )
    assert [name for _, name in imported(file)] == ["medae.io.answer", "medae.cli", "medae.demo", "medae.cli"]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_predictor_needs_no_torch() -> None:
    loaded = python(
        "import sys, medae.predictor, medae.answers; print(*(m.split('.')[0] for m in sys.modules))"
    ).split()
    assert not {"torch", "monai", "lightning_fabric", "bentoml"} & set(loaded)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['medae', '--help']\n"
        "import medae.cli\n"
        "try: medae.cli.main()\n"
        "except SystemExit: print('LOADED', *(m.split('.')[0] for m in sys.modules))"
    )
    loaded = set(python(code).rpartition("LOADED")[2].split())
    assert "typer" in loaded
    assert not loaded & {
        "torch",
        "monai",
        "bentoml",
        "nibabel",
        "pydicom",
        "numpy",
        "pydantic",
        "skimage",
        "matplotlib",
    }


def test_help_answers_at_once() -> None:
    def seconds() -> tuple[float, float]:
        """Of one call: on the clock, and of the processor."""
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "medae", "--help"], capture_output=True, check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - start, used

    calls = [seconds() for _ in range(9)]
    # with more work than cores, the clock measures the others' work: then the processor's time must do
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    best = min(used if busy else clock for clock, used in calls)
    assert best < 0.4, f"medae --help took {best:.2f} s ({'processor' if busy else 'clock'})"


def test_public_names_are_there() -> None:
    for name in medae.__all__:
        assert getattr(medae, name) is not None
    assert {"read_image", "Image", "Geometry", "train", "evaluate", "load", "Predictor", "errors"} <= set(medae.__all__)


def test_the_module_of_a_public_function_does_not_hide_it() -> None:
    importlib.import_module("medae.evaluation")
    importlib.import_module("medae.training")
    assert callable(medae.evaluate)
    assert callable(medae.train)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file with its number of lines, its docstring left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            said = node.body[0] if ast.get_docstring(node) else None
            docstring = said.end_lineno - said.lineno + 1 if said and said.end_lineno else 0
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def test_files_and_functions_stay_short() -> None:
    long = [str(path.relative_to(ROOT)) for path in SOURCES if len(path.read_text().splitlines()) > 400]
    assert not long, f"over 400 lines: {long}"
    long = [f"{path.name}: {name}" for path in SOURCES for name, lines in functions(path) if lines > 60]
    assert not long, f"over 60 lines: {long}"


def test_nothing_is_left_to_do_later() -> None:
    left = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    texts = [*SOURCES, *ROOT.glob("tests/*.py"), *PAPERS, ROOT / "Makefile", ROOT / ".ci/run"]
    assert not [str(path.relative_to(ROOT)) for path in texts if left.search(path.read_text())]


def test_no_room_is_a_drawer() -> None:
    names = {part for path in SOURCES for part in module_name(path).split(".")}
    assert not names & {"utils", "util", "common", "helpers", "factory", "manager", "misc"}


def test_the_shipped_configurations_are_found() -> None:
    assert shipped.configs_folder() == ROOT / "configs"


def requirements() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    yield from (Requirement(line) for group in groups for line in group)


def test_the_lock_covers_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for requirement in requirements():
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version} of constraints.txt"
    assert not [version for version in pinned.values() if "+" in version], "a local version exists on one machine only"


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_papers_name_what_exists(path: Path) -> None:
    from typer.main import get_command

    from medae.cli import app

    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`|^    [^\n]*$", text, re.DOTALL | re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) <= targets
    assert set(re.findall(r"(?<!from )\bmedae ([a-z]+)\b", code)) <= commands
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    named = re.findall(r"(?<![/\w])(?:medae|services|configs|tests|benchmarks)/[\w./-]*\w", code)
    missing = [name for name in links if not (path.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists() and not list(ROOT.glob(f"{name}.*"))]
    assert not missing, f"{path.name} names {missing}"


def test_scripts_can_be_run() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", hooks) == ["local"]
