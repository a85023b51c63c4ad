"""Damaged heads of every format that is read: an image, or one of our errors; nothing else, and never for long."""

import gzip
import io
import time

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile

from medae.errors import InputError
from medae.io import read_image
from tests.dicom_made import as_file, ct, sample
from tests.test_io_dicom_kinds import enhanced
from tests.test_io_dicom_refused import deflated
from tests.test_io_volumes import MHA, nrrd

SECONDS = 5
"""For one file; a hang is what this is for, and the machine may be busy."""
_TOKENS = [
    b"\xff",
    b"\0",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    bytes(4),
    b"\xfe\xff\x00\xe0",
    b"-1",
    b"SQ",
]


def _tiff(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def heads() -> dict[str, bytes]:
    """Small sound files, of each format and of each way to pack DICOM."""
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 3000, (5, 7, 6)).astype(np.int16)
    grey = rng.integers(0, 255, (33, 17)).astype(np.uint8)
    nifti = nibabel.Nifti1Image(volume.T, np.diag([2.0, 3, 4, 1])).to_bytes()
    names = (
        "MR_small_RLE",
        "MR_small_jpeg_ls_lossless",
        "MR_small_jp2klossless",
        "SC_rgb_small_odd_jpeg",
        "JPGExtended",
    )
    return {
        "dicom": as_file(ct(volume[0])),
        "dicom implicit": sample("MR_small_implicit.dcm").read_bytes(),
        "dicom big-endian": sample("MR_small_bigendian.dcm").read_bytes(),
        "dicom deflated": deflated(ct(volume[0])),
        "dicom enhanced": as_file(enhanced(volume)),
        **{f"dicom {name}": sample(f"{name}.dcm").read_bytes() for name in names},
        "nifti": nifti,
        "nifti gz": gzip.compress(nifti),
        "nifti 2": nibabel.Nifti2Image(volume, np.eye(4)).to_bytes(),
        "png": imagecodecs.png_encode(grey),
        "tiff": _tiff(grey),
        "tiff deflate": _tiff(grey, compression="zlib", tile=(16, 16)),
        "mha": MHA.format(file="LOCAL").encode() + bytes(48),
        "nrrd": nrrd(volume, "space: ras", "space directions: (1,0,0) (0,1,0) (0,0,1)"),
        "nrrd gzip": nrrd(volume, data=gzip.compress(volume.tobytes())).replace(b"encoding: raw", b"encoding: gzip"),
    }


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes of its first kilobyte or so replaced, doubled or cut out; sometimes cut short."""
    out = bytearray(data)
    reach = min(len(out), int(rng.choice([64, 512, 2048, len(out)])))
    for _ in range(rng.integers(1, 7)):
        at = int(rng.integers(reach))
        token = _TOKENS[rng.integers(len(_TOKENS))] if rng.random() < 0.6 else rng.bytes(int(rng.integers(1, 5)))
        match rng.integers(4):
            case 0:
                del out[at : at + len(token)]
            case 1:
                out[at:at] = out[at : at + 16]
            case _:
                out[at : at + len(token)] = token
    return bytes(out[: rng.integers(1, len(out) + 1)]) if rng.random() < 0.2 else bytes(out)


def damage(count: int, seed: int) -> dict[str, int]:
    """Reads `count` damaged files; how many were read, and how many refused with which code."""
    rng = np.random.default_rng(seed)
    sound = list(heads().values())
    outcomes: dict[str, int] = {}
    for _ in range(count):
        data = mutated(sound[rng.integers(len(sound))], rng)
        begin = time.monotonic()
        try:
            read_image(data)
            outcome = "read"
        except InputError as error:
            assert str(error)
            outcome = error.code
        assert time.monotonic() - begin < SECONDS
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def test_the_heads_themselves_are_read() -> None:
    for data in heads().values():
        read_image(data)


def test_some_damaged_heads() -> None:
    outcomes = damage(400, seed=1)
    assert outcomes["read"] > 20 and outcomes["unreadable-image"] > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_damaged_heads() -> None:
    assert sum(damage(10_000, seed=2).values()) == 10_000


def test_sequences_nested_without_end() -> None:
    head = as_file(ct(np.zeros((4, 4), np.int16)))[:132]
    meta = as_file(ct(np.zeros((4, 4), np.int16)))
    start = meta.index(b"\x08\x00\x05\x00") if b"\x08\x00\x05\x00" in meta else meta.index(b"\x08\x00\x08\x00CS")
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    data = meta[:start] + opening * 20_000
    assert data.startswith(head)
    with pytest.raises(InputError):
        read_image(data)
