"""The configurations that medae ships: inside the package in a wheel, beside it in a checkout."""

from pathlib import Path

from medae.errors import UsageError


def configs_folder() -> Path:
    """The folder of shipped configurations. The one place that knows where it is."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        "medae was installed without its configurations: install it again from a wheel or a checkout"
    )


def find_config(name: str) -> Path:
    """A configuration by its path or, where there is no such file, by its name among the shipped: `demo/denoise`.

    Raises UsageError, listing the shipped names.
    """
    folder = configs_folder()
    for path in (Path(name), folder / name, folder / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = ", ".join(path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml")))
    raise UsageError(f"{name}: no such configuration; give the path of a YAML file or one of: {shipped}")
