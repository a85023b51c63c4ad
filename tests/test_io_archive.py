"""Zips within zips, as deep as the limits say; and what one guard refuses at all doors."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from medae.batch.manifest import list_items
from medae.errors import LimitExceeded, UnsupportedImage, UsageError
from medae.io import DEFAULT_LIMITS, Limits, encode_png, read_image
from medae.io.archive import Bounds, unpack

PICTURE = encode_png(np.arange(35, dtype=np.uint8).reshape(5, 7))


def zipped(*files: tuple[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as table:
        for name, data in files:
            table.writestr(name, data)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    """A picture within so many zips."""
    return PICTURE if depth == 0 else zipped(("in", nested(depth - 1)))


def sharing() -> bytes:
    """A zip whose second entry has the data of its first."""
    noise = np.random.default_rng(0).bytes(1000)
    data = bytearray(zipped(("a", noise), ("b", noise)))
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    begin, end = data.index(b"PK\3\4", 4), first  # without the second's own
    size = end - begin
    del data[begin:end]
    data[-6:-2] = (int.from_bytes(data[-6:-2], "little") - size).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_zips_are_opened_as_deep_as_the_limits_say(depth: int) -> None:
    limits = Limits(depth=depth)
    for packed in range(1, depth + 1):
        assert read_image(nested(packed), limits=limits).geometry.shape == (1, 5, 7)
    with pytest.raises(UnsupportedImage, match="zip in the zip"):
        read_image(nested(depth + 1), limits=limits)


def test_files_of_nested_zips_keep_their_order(tmp_path: Path) -> None:
    data = zipped(("0", b"0"), ("1", zipped(("a", b"1"), ("b", zipped(("c", b"2"))), ("d", b"3"))), ("z", b"4"))
    bounds = Bounds(files=20, bytes=10**6, freely=10**6, depth=3)
    paths = unpack(data, tmp_path, bounds, lambda: False)
    assert [path.read_bytes() for path in paths] == [b"0", b"1", b"2", b"3", b"4"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # nothing else stays


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"files": 5}, "holds 8 files"),  # two zips, and three files in each
        ({"bytes": 30_500}, "at most 30500"),
        ({"freely": 30_500}, "more than 100 for one"),
    ],
)
def test_nested_zips_count_together(tmp_path: Path, bounds: dict[str, int], said: str) -> None:
    inner = zipped(*((name, bytes(10_000)) for name in "abc"))
    most = {"files": 10, "bytes": 10**6, "freely": 10**6, "depth": 2} | bounds
    with pytest.raises(LimitExceeded, match=said):
        unpack(zipped(("x", inner), ("y", inner)), tmp_path, Bounds(**most), lambda: False)


def test_files_that_share_their_data_are_refused_at_every_door(tmp_path: Path) -> None:
    (tmp_path / "shared.zip").write_bytes(sharing())
    with pytest.raises(UnsupportedImage, match="share their data"):
        read_image(tmp_path / "shared.zip", limits=DEFAULT_LIMITS)
    with pytest.raises(UsageError, match="share their data"):
        list_items([str(tmp_path / "shared.zip")])
