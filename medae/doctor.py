"""What this machine has for medae: versions, device, cores, memory, disk, programs of others, limits."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from medae import __version__
from medae.io.guard import DEFAULT_LIMITS
from medae.machine import cores

DEPENDENCIES = (
    *("torch", "monai", "lightning-fabric", "numpy", "pydicom", "python-gdcm", "pyjpegls", "pylibjpeg-openjpeg"),
    *("pylibjpeg-rle", "highdicom", "nibabel", "tifffile", "imagecodecs", "scikit-image", "scikit-learn", "bentoml"),
)

PROGRAMS = {
    "dciodvfy": "checks DICOM answers in the tests (Debian: dicom3tools)",
    "dcmftest": "reads DICOM answers in the tests (Debian: dcmtk)",
}

GIB = 2**30


def examine() -> dict[str, Any]:
    """Findings as plain data; `problems` says what would keep medae from working, and what to do."""
    versions = {name: _version(name) for name in DEPENDENCIES}
    missing = [name for name, version in versions.items() if version is None]
    return {
        "medae": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
        "device": _device() if versions["torch"] else None,
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "disk_free_gib": {"here": _free_gib(Path.cwd()), "temporary": _free_gib(Path(tempfile.gettempdir()))},
        "programs": {name: shutil.which(name) for name in PROGRAMS},
        "limits": DEFAULT_LIMITS.model_dump(),
        "problems": [f"{name} is not installed: pip install {name}" for name in missing],
    }


def show(findings: dict[str, Any]) -> None:
    """Findings on stdout, a line each."""
    console = Console(soft_wrap=True, highlight=False)
    for name, value in _lines(findings):
        console.print(f"[bold]{name:<24}[/]  {escape(value)}")
    for problem in findings["problems"]:
        console.print(f"[bold red]problem[/]: {escape(problem)}")


def _lines(findings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("medae", "python", "system", "device", "cores", "memory_gib"):
        yield name, str(findings[name])
    for name, free in findings["disk_free_gib"].items():
        yield f"disk_free_gib {name}", str(free)
    for name, version in findings["versions"].items():
        yield name, version or "missing"
    for name, path in findings["programs"].items():
        yield name, path or f"not there; {PROGRAMS[name]}"
    for name, limit in findings["limits"].items():
        yield f"limit {name}", f"{limit:,}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    """What `--device auto` takes."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    found = torch.cuda.get_device_properties(0)
    return f"cuda: {torch.cuda.device_count()} x {found.name}, {found.total_memory / GIB:.0f} GiB each"


def _memory_gib() -> float:
    """Memory of the machine or, where it is less, of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return round(total / GIB, 1)


def _free_gib(folder: Path) -> float:
    return round(shutil.disk_usage(folder).free / GIB, 1)
