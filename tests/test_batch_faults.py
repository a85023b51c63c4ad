"""Some cases are bad, in twelve ways: exactly these fail, each with its reason, and the rest is untouched."""

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from pydicom.data import get_testdata_file

from medae.batch import results
from medae.batch.run import run
from medae.batch.settings import BatchSettings
from tests.batch_parts import Seen, everything, segmenter

PICTURES = 50


def png_with(head: bytes, good: bytes) -> bytes:
    """A PNG whose header declares something else."""
    chunk = b"IHDR" + head
    return good[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + good[33:]


def as_file(save: Callable[[Path], None]) -> Callable[[bytes, Path], bytes | None]:
    def make(good: bytes, path: Path) -> None:
        save(path)

    return make


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as table:
        table.writestr("a.png", b"x")


def not_finite(path: Path) -> None:
    tifffile.imwrite(path, np.full((20, 20), np.nan, np.float32))


# how a good PNG becomes a bad file, and what is then said
BAD: dict[str, tuple[Callable[[bytes, Path], bytes | None], str, str]] = {
    "empty": (lambda good, path: b"", "unreadable-image", "the file is empty"),
    "text": (lambda good, path: b"not an image", "unsupported-image", "unknown kind of file"),
    "cut short": (lambda good, path: good[: len(good) // 2], "unreadable-image", "PNG"),
    "check sum": (lambda good, path: good[:50] + b"\x55\xaa" + good[52:], "unreadable-image", "PNG"),
    "forged size": (
        lambda good, path: png_with(struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0), good),
        "limit-exceeded",
        "60000",
    ),
    "no rows": (lambda good, path: png_with(struct.pack(">IIBBBBB", 20, 0, 8, 0, 0, 0, 0), good), "", ""),
    "a zip": (as_file(zipped), "unsupported-image", "what came is"),
    "a GIF": (
        as_file(lambda path: Pillow.new("L", (20, 20)).save(path, "GIF")),
        "unsupported-image",
        "what came is",
    ),
    "not finite": (as_file(not_finite), "unfit-image", "not finite"),
    "colour": (
        as_file(lambda path: Pillow.new("RGB", (20, 20), (200, 30, 90)).save(path, "PNG")),
        "unfit-image",
        "grey images",
    ),
    "too small": (as_file(lambda path: Pillow.new("L", (1, 1)).save(path, "PNG")), "unfit-image", "larger image"),
    "a report": (
        lambda good, path: Path(get_testdata_file("reportsi.dcm")).read_bytes(),
        "unsupported-image",
        "DICOM",
    ),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pictures, and what it answers when all of them are good."""
    folder = tmp_path_factory.mktemp("clean")
    segmenter().save(folder / "package")
    rng = np.random.default_rng(11)
    for number in range(PICTURES):
        Pillow.fromarray(rng.integers(0, 255, (20, 20), np.uint8)).save(folder / f"p{number}.png")
    answer(folder, cases(folder, PICTURES), folder)
    return folder


def cases(folder: Path, count: int) -> list[str]:
    """Lines of a list; a picture is many cases."""
    return [f"c{number:04d},{folder}/p{number % PICTURES}.png" for number in range(count)]


def answer(clean: Path, lines: list[str], folder: Path) -> results.Counts:
    (folder / "cases.csv").write_text("\n".join(["id,path", *lines]) + "\n")
    settings = BatchSettings(
        packages=(str(clean / "package"),),
        inputs=(str(folder / "cases.csv"),),
        out=folder / "out",
        workers=0,
        device="cpu",
        report=False,
    )
    return run(settings, Seen())


@pytest.mark.parametrize("count", [120, pytest.param(1200, marks=pytest.mark.slow)])
def test_exactly_the_bad_cases_fail_and_each_says_why(clean: Path, tmp_path: Path, count: int) -> None:
    lines = cases(clean, count)
    places = dict(zip(BAD, np.random.default_rng(0).choice(count, len(BAD), replace=False).tolist(), strict=True))
    good = (clean / "p0.png").read_bytes()
    for number, (name, place) in enumerate(places.items()):
        path = tmp_path / f"bad{number}.png"
        if (data := BAD[name][0](good, path)) is not None:
            path.write_bytes(data)
        lines[place] = f"c{place:04d},{path}"
    counts = answer(clean, lines, tmp_path)
    assert (counts.done, counts.failed, counts.fault) == (count - len(BAD), len(BAD), 0)
    (rows, files), (clean_rows, clean_files) = everything(tmp_path / "out"), everything(clean / "out")
    for name, place in places.items():
        _, code, said = BAD[name]
        assert rows[place]["status"] == "failed" and code in rows[place]["code"], name
        assert said in rows[place]["reason"], (name, rows[place]["reason"])
    for number in set(range(count)) - set(places.values()):
        twin, output = clean_rows[number % PICTURES], f"answers/c{number:04d}_labels.png"
        assert rows[number] == twin | {"id": f"c{number:04d}", "outputs": [output]}
        assert files.pop(output) == clean_files[twin["outputs"][0]]
    assert not files
