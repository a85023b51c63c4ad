"""What a file is, is decided by content; what it declares, is checked before decoding; damage is one clear error."""

import gzip
import io
import struct
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from medae.errors import (
    InputError,
    LimitExceeded,
    SeriesError,
    UnreadableImage,
    UnsupportedImage,
)
from medae.io import Limits, read_image
from medae.io.guard import inflate, inflate_head


def _png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def _jpeg(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(array).save(out, "JPEG", quality=90, progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    return out.getvalue()


def _tiff(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def _nifti(array: np.ndarray) -> bytes:
    return nibabel.Nifti1Image(array, np.diag([2.0, 3, 4, 1])).to_bytes()


def _samples() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    grey, rgb = rng.integers(0, 255, (33, 17), np.uint8), rng.integers(0, 255, (33, 17, 3), np.uint8)
    volume = rng.integers(0, 3000, (5, 7, 6)).astype(np.int16)
    return {
        "png grey": _png(grey),
        "png rgb": _png(rgb),
        "jpeg": _jpeg(rgb),
        "tiff raw": _tiff(grey),
        "tiff deflate": _tiff(rgb, compression="zlib", predictor=True, tile=(16, 16)),
        "tiff lzw": _tiff(grey.astype(np.uint16), compression="lzw"),
        "tiff zstd": _tiff(np.stack([grey] * 3), photometric="minisblack", compression="zstd"),
        "tiff packbits": _tiff(grey, compression="packbits"),
        "tiff jpeg": _tiff(rgb, compression="jpeg", tile=(16, 16)),
        "nii": _nifti(volume),
        "nii2": nibabel.Nifti2Image(volume, np.eye(4)).to_bytes(),
        "nii big-endian": nibabel.Nifti1Image(volume, np.eye(4), nibabel.Nifti1Header(endianness=">")).to_bytes(),
        "nii.gz": gzip.compress(_nifti(volume)),
    }


SAMPLES = _samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_themselves_are_read(name: str, tmp_path: Path) -> None:
    misleading = tmp_path / "scan.dcm"  # the name means nothing
    misleading.write_bytes(SAMPLES[name])
    assert np.array_equal(read_image(SAMPLES[name]).pixels, read_image(misleading).pixels)
    assert np.array_equal(read_image([misleading]).pixels, read_image(str(tmp_path)).pixels)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_is_refused(name: str) -> None:
    data = SAMPLES[name]
    for length in {*range(0, min(len(data), 40)), *np.linspace(0, len(data), 60, endpoint=False).astype(int)}:
        if name == "tiff raw" and length >= len(data) - 1:
            continue  # padding
        with pytest.raises(InputError):
            read_image(data[:length])


def test_last_bytes_matter() -> None:
    for name in ("png grey", "jpeg", "nii", "nii.gz", "tiff zstd"):
        with pytest.raises(UnreadableImage):
            read_image(SAMPLES[name][:-1])


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", UnreadableImage, "empty"),
        (b"\x89", UnsupportedImage, "unknown kind"),
        (b"PK\x03\x04" + bytes(40), UnreadableImage, "zip is damaged"),
        (b"NRRD0004\n", UnreadableImage, "damaged"),
        (b"ObjectType = Image\n", UnreadableImage, "no end"),
        (b"GIF89a" + bytes(40), UnsupportedImage, "GIF"),
        (bytes(1000), UnsupportedImage, "unknown kind"),
        (gzip.compress(b"text" * 400), UnsupportedImage, "gzip data that is no NIfTI"),
        (struct.pack("<i", 348) + bytes(400), UnsupportedImage, "ANALYZE"),
        (struct.pack("<i", 348) + bytes(340) + b"ni1\0" + bytes(9), UnsupportedImage, "pair"),
        (b"\x89PNG\r\n\x1a\n", UnreadableImage, "truncated"),
        (b"\xff\xd8\xff", UnreadableImage, "truncated"),
        (b"II*\0", UnreadableImage, "damaged"),
    ],
)
def test_what_came_is_named(data: bytes, error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_image(data)


def test_several_files_are_one_dicom_series_or_refused(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(SAMPLES["png grey"])
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(SeriesError, match="2 x png, 1 x an unknown kind"):
        read_image(sorted(tmp_path.iterdir(), reverse=True))
    with pytest.raises(SeriesError, match="empty folder"):
        read_image([])
    with pytest.raises(LimitExceeded, match="more than 2 files"):
        read_image(tmp_path, limits=Limits(files=2))


def test_a_folder_is_walked_without_hidden_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one").write_bytes(SAMPLES["png grey"])
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "deep" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert read_image(tmp_path).geometry.shape == (1, 33, 17)


def test_dicom_wins_over_what_its_preamble_looks_like() -> None:
    data = Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes()
    for preamble in (b"II*\0", struct.pack("<i", 348), b"\x1f\x8b"):
        image = read_image(preamble.ljust(128, b"\0") + data[128:])
        assert image.source.format == "dicom"


def test_missing_file_says_nothing_of_its_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage) as caught:
        read_image(tmp_path / "Jane_Doe.png")
    assert "Jane" not in str(caught.value)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_of(rows: int, columns: int) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(100))) + _chunk(b"IEND", b"")


def _tiff_of(size: int) -> bytes:
    raw = bytearray(_tiff(np.zeros((64, 64), np.uint8), compression="zlib", rowsperstrip=64, metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(raw))) as tif:
        for tag in tif.pages[0].tags.values():
            if tag.name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                struct.pack_into("<H" if tag.dtype == 3 else "<I", raw, tag.valueoffset, size)
    return bytes(raw)


def _jpeg_of(rows: int, columns: int) -> bytes:
    raw = bytearray(_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = raw.index(b"\xff\xc2")
    struct.pack_into(">HH", raw, at + 5, rows, columns)
    return bytes(raw)


def _nifti_of(*sizes: int, stored: int = 64) -> bytes:
    raw = bytearray(_nifti(np.zeros((2, 2, 2))) + bytes(stored))
    struct.pack_into("<8h", raw, 40, 3, *sizes, 1, 1, 1, 1)
    return bytes(raw)


BOMBS = {
    "67-byte .nii.gz of 8 TB": gzip.compress(_nifti_of(32000, 32000, 1000)),
    "small .nii.gz of 32 MB": gzip.compress(_nifti_of(160, 160, 160)),
    "1 MB .nii.gz of 8 GiB": gzip.compress(_nifti_of(1024, 1024, 1024, stored=1 << 20)),
    ".nii of 400 MB": _nifti_of(400, 400, 320),
    "282-byte TIFF of 3.6 GB": _tiff_of(60000),
    "TIFF of 225 MB": _tiff_of(15000),
    "PNG of 2.5 Gpx": _png_of(50000, 50000),
    "PNG of 144 Mpx, where Pillow only warns": _png_of(12000, 12000),
    "JPEG of 4 Gpx": _jpeg_of(65500, 65500),
    "JPEG of 100 Mpx": _jpeg_of(10000, 10000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_forged_sizes_are_refused_at_once(name: str) -> None:
    assert len(BOMBS[name]) < 5000 or "MB" in name
    start = time.process_time()
    with pytest.raises(InputError, match="declare"):
        read_image(BOMBS[name])
    assert time.process_time() - start < 1


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read the Linux way")
def test_forged_sizes_cost_no_memory(tmp_path: Path) -> None:
    for number, data in enumerate(BOMBS.values()):
        (tmp_path / str(number)).write_bytes(data)
    program = (
        "import re, sys, warnings; from pathlib import Path; warnings.simplefilter('error')\n"
        "from medae.errors import InputError; from medae.io import read_image\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: read_image(path); sys.exit('was read')\n"
        "    except InputError: pass\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000, "kB"


def test_a_jpeg_tile_may_not_declare_more_than_its_tile() -> None:
    data = bytearray(SAMPLES["tiff jpeg"])
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, 60000, 60000)
    with pytest.raises(UnreadableImage, match="60000 x 60000"):
        read_image(bytes(data))


def test_pages_in_a_circle_are_refused() -> None:
    data = bytearray(_tiff(np.zeros((8, 8), np.uint8), metadata=None))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    with pytest.raises(UnreadableImage, match="circle"):
        read_image(bytes(data))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(bytes=100), "at most 100"),
        (Limits(pixels=41), "pixels a slice"),
        (Limits(voxels=209), "voxels"),
        (Limits(frames=4), "slices"),
    ],
)
def test_limits_can_be_set(limits: Limits, says: str) -> None:
    volume = _nifti(np.zeros((6, 7, 5), np.uint8))  # (5, 7, 6): 42 pixels a slice, 210 voxels
    read_image(volume, limits=Limits(bytes=len(volume), pixels=42, voxels=210, frames=5))
    with pytest.raises(LimitExceeded, match=says):
        read_image(volume, limits=limits)


@given(st.binary(max_size=3000), st.integers(0, 9), st.lists(st.integers(0, 3000), max_size=3))
@settings(deadline=None, max_examples=60)
def test_inflate_gives_what_was_deflated(data: bytes, level: int, cuts: list[int]) -> None:
    edges = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    members = [data[a:b] for a, b in pairwise(edges)] or [data]
    packed = b"".join(gzip.compress(member, level) for member in members)
    assert inflate(packed, len(data)) == data
    assert inflate(packed, len(data) // 2) == data[: len(data) // 2]
    assert members[0].startswith(inflate_head(packed, 50))
    with pytest.raises(UnreadableImage):
        inflate(packed, len(data) + 1)


def test_inflate_checks_sums_and_ends() -> None:
    data = bytes(range(256)) * 20_000  # larger than one piece
    packed = gzip.compress(data, 0)
    assert inflate(packed + gzip.compress(b"padding"), len(data)) == data
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 1
    for bad in (bytes(damaged), packed[:-1], packed[:-8], packed[: len(packed) // 2]):
        with pytest.raises(UnreadableImage):
            inflate(bad, len(data))


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A sound file with a few bytes of its headers, or of anything, replaced; or cut; or with something doubled."""
    data = bytearray(draw(st.sampled_from([*SAMPLES.values(), *BOMBS.values()])))
    reach = draw(st.sampled_from([64, 400, len(data)]))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(reach, len(data)) - 1))
        new = draw(
            st.sampled_from([b"\xff", b"\0", b"\x80", b"\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
            | st.binary(min_size=1, max_size=4)
        )
        data[at : at + len(new)] = new
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@given(_damaged())
@settings(deadline=5000, max_examples=1500, suppress_health_check=list(HealthCheck))
def test_damage_raises_only_our_errors(data: bytes) -> None:
    try:
        image = read_image(data)
    except InputError:
        return
    assert image.pixels.nbytes <= 1 << 26
