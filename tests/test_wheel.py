"""What users install: the built wheel, in an empty environment, away from the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel as its only package, outside the checkout.

    The dependencies are those of this environment, reached by a .pth file: nothing is downloaded. Python does not
    read .pth files found that way, so the editable medae of this environment stays out of sight.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("env/lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_what_is_shipped_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"medae", "medae_service"}
    assert {"medae/__init__.pyi", "medae/py.typed", "medae_service/py.typed"} <= set(names)
    configs = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert {f"medae/{name}" for name in configs} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_what_runs_is_the_wheel(elsewhere: Path) -> None:
    code = "import medae, medae_service; print(medae.__file__); print(medae_service.__file__)"
    files = run(elsewhere / "env/bin/python", "-c", code, cwd=elsewhere).split()
    assert all(Path(file).is_relative_to(elsewhere) for file in files), files


def test_the_shipped_configurations_are_found(elsewhere: Path) -> None:
    code = "from medae.shipped import configs_folder; print(configs_folder())"
    folder = Path(run(elsewhere / "env/bin/python", "-c", code, cwd=elsewhere).strip())
    assert folder.is_relative_to(elsewhere)
    assert {path.name for path in folder.rglob("*.yaml")} == {path.name for path in ROOT.glob("configs/**/*.yaml")}


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["doctor"], ["schema"]], ids=lambda one: one[0])
def test_commands_answer(arguments: list[str], elsewhere: Path) -> None:
    assert run(elsewhere / "env/bin/medae", *arguments, cwd=elsewhere)


def test_the_quick_demo_runs_from_the_wheel(elsewhere: Path) -> None:
    run(elsewhere / "env/bin/medae", "demo", "--quick", "--out", elsewhere / "demo", cwd=elsewhere)
    assert list((elsewhere / "demo").glob("**/*.png"))
