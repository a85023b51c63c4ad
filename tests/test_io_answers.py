"""The answer table for pictures and volumes, and writing: all files or none, nothing half-written."""

import errno
import gzip
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medae.errors import OutputError
from medae.image import Geometry, Image
from medae.io import (
    encode_labels,
    encode_map,
    encode_probabilities,
    encode_restored,
    read_image,
    read_labels,
    write_files,
    write_image,
)
from medae.io.answer import Algorithm, AnswerFile, CodedTerm, Label, to_stored

WE = Algorithm("nuclei", "1.2.0", "sha256:" + 64 * "a")
LABELS = (Label(name="nucleus", colour=(200, 30, 40)), Label(name="lumen", colour=(10, 220, 90)))
RNG = np.random.default_rng(3)


def _picture(kind: str, array: np.ndarray) -> Image:
    out = io.BytesIO()
    if kind == "tiff":
        tifffile.imwrite(out, array, photometric="minisblack")
    else:
        PIL.Image.fromarray(array).save(out, kind)
    return read_image(out.getvalue())


def _volume() -> Image:
    affine = np.array([[0, 0.2, 3, 1], [2, 0, 0, 5], [0, 1.5, -0.4, 9], [0, 0, 0, 1]])
    return read_image(nibabel.Nifti1Image(RNG.integers(0, 90, (6, 5, 4)).astype(np.int16), affine).to_bytes())


GREY, RGB = RNG.integers(0, 256, (7, 11), np.uint8), RNG.integers(0, 256, (7, 11, 3), np.uint8)


def _labels_for(image: Image, top: int = 2) -> Image:
    return image.with_pixels(RNG.integers(0, top + 1, (1, *image.geometry.shape)).astype(np.uint16))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_labels_of_pictures_show_their_colours_and_are_their_numbers(kind: str) -> None:
    labels = _labels_for(_picture(kind, RGB))
    (answer,) = encode_labels(labels, stem="tile", labels_info=LABELS, algorithm=WE)
    assert (answer.name, answer.media_type) == ("tile_labels.png", "image/png")
    shown = PIL.Image.open(io.BytesIO(answer.data))
    shown.load()
    assert shown.mode == "P" and shown.info["Software"].startswith("medae nuclei 1.2.0 sha256:aaa")
    assert np.array_equal(np.asarray(shown), labels.pixels[0, 0])
    colours = np.array([(0, 0, 0), (200, 30, 40), (10, 220, 90)])
    assert np.array_equal(np.asarray(shown.convert("RGB")), colours[labels.pixels[0, 0]])
    assert np.array_equal(read_labels(answer.data).pixels, labels.pixels)


def test_many_labels_are_sixteen_bit_grey() -> None:
    many = [Label(name=f"cell {n}", colour=(n % 256, 0, 0)) for n in range(300)]
    labels = _labels_for(_picture("png", GREY), 300)
    (answer,) = encode_labels(labels, stem="x", labels_info=many, algorithm=WE)
    assert np.array_equal(read_labels(answer.data).pixels, labels.pixels)
    assert read_labels(answer.data).pixels.dtype == np.uint16
    (most,) = encode_labels(_labels_for(_picture("png", GREY), 255), stem="x", labels_info=many[:255], algorithm=WE)
    assert PIL.Image.open(io.BytesIO(most.data)).mode == "P"


def test_labels_of_tiff_and_nifti_are_numbers_in_place() -> None:
    stack = _labels_for(_picture("tiff", np.stack([GREY] * 3)))
    (answer,) = encode_labels(stack, stem="x", labels_info=LABELS, algorithm=WE)
    assert (answer.name, answer.media_type) == ("x_labels.tif", "image/tiff")
    assert np.array_equal(tifffile.imread(io.BytesIO(answer.data)), stack.pixels[0])
    volume = _labels_for(_volume())
    (answer,) = encode_labels(volume, stem="x", labels_info=LABELS, algorithm=WE)
    assert answer.name == "x_labels.nii.gz"
    again = read_image(answer.data)
    assert again.pixels.dtype == np.uint8 and np.array_equal(again.pixels, volume.pixels)
    again.geometry.require_same_grid(volume.geometry)


@pytest.mark.parametrize("bad", [np.int16(-1), np.uint16(3), np.float32(1)])
@pytest.mark.parametrize("source", [lambda: _picture("png", GREY), lambda: _picture("tiff", GREY), _volume])
def test_what_is_no_label_image_is_refused(bad: np.generic, source: Callable[[], Image]) -> None:
    image = source()
    pixels = np.full((1, *image.geometry.shape), bad)
    with pytest.raises(OutputError, match="whole numbers 0 to 2"):
        encode_labels(image.with_pixels(pixels), stem="x", labels_info=LABELS, algorithm=WE)


@pytest.mark.parametrize(
    ("kind", "array", "name"),
    [
        ("png", GREY, "x_restored.png"),
        ("png", RGB, "x_restored.png"),
        ("png", np.dstack([RGB, GREY]), "x_restored.png"),
        ("png", GREY.astype(np.uint16) * 256, "x_restored.png"),
        ("jpeg", RGB, "x_restored.png"),
        ("tiff", GREY, "x_restored.tif"),
        ("tiff", np.stack([GREY] * 3).astype(np.uint16), "x_restored.tif"),
        ("tiff", GREY.astype(np.float32) / 3, "x_restored.tif"),
    ],
)
def test_restored_has_the_depth_and_colours_of_its_source(kind: str, array: np.ndarray, name: str) -> None:
    image = _picture(kind, array)
    (answer,) = encode_restored(
        image.with_pixels(image.pixels.astype(np.float32)), stem="x", algorithm=WE, description="Denoised"
    )
    again = read_image(answer.data)
    assert answer.name == name and again.source.format == name[-3:].replace("tif", "tiff")
    assert again.pixels.dtype == image.pixels.dtype and np.array_equal(again.pixels, image.pixels)


def test_colour_may_come_from_grey() -> None:
    image = _picture("png", GREY)
    (answer,) = encode_restored(
        image.with_pixels(np.repeat(image.pixels, 3, 0).astype(np.float32)), stem="x", algorithm=WE, description=""
    )
    assert read_image(answer.data).channels == 3


@pytest.mark.parametrize("source", [lambda: _picture("jpeg", RGB), lambda: _picture("tiff", GREY), _volume])
def test_maps_and_probabilities_are_real_numbers_in_place(source: Callable[[], Image]) -> None:
    image = source()
    suffix = ".nii.gz" if image.source.format == "nifti" else ".tif"
    scores = image.with_pixels(RNG.random((1, *image.geometry.shape)) * 40)
    (answer,) = encode_map(scores, stem="x", maximum=3.0, algorithm=WE)
    assert answer.name == f"x_map{suffix}"
    again = read_image(answer.data)
    assert again.pixels.dtype == np.float32 and np.array_equal(again.pixels, scores.pixels.astype(np.float32))
    again.geometry.require_same_grid(image.geometry)
    for count in (1, 2, 3, 4):
        chances = image.with_pixels(RNG.random((count, *image.geometry.shape)).astype(np.float32))
        (answer,) = encode_probabilities(chances, stem="x", labels_info=LABELS, algorithm=WE)
        assert answer.name == f"x_probabilities{suffix}"
        assert np.array_equal(read_image(answer.data).pixels, chances.pixels)


def test_images_made_in_python_are_answered_as_tiff_or_nifti(tilted_volume: Image) -> None:
    flat = Image(GREY[None, None], Geometry.picture(7, 11))
    assert encode_restored(flat, stem="x", algorithm=WE, description="")[0].name == "x_restored.tif"
    (answer,) = encode_restored(tilted_volume, stem="x", algorithm=WE, description="")
    assert answer.name == "x_restored.nii.gz"
    assert np.array_equal(read_image(answer.data).pixels, tilted_volume.pixels)


def test_the_same_answer_has_the_same_bytes() -> None:
    volume, picture = _labels_for(_volume()), _labels_for(_picture("tiff", GREY))
    for image in (volume, picture):
        once, again = (encode_labels(image, stem="x", labels_info=LABELS, algorithm=WE) for _ in range(2))
        assert once == again
    assert (
        gzip.decompress(encode_labels(volume, stem="x", labels_info=LABELS, algorithm=WE)[0].data)[:4]
        == b"\x5c\x01\0\0"
    )


@given(
    st.floats(width=32) | st.integers(-(2**40), 2**40),
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]),
)
@settings(deadline=None, max_examples=300)
def test_to_stored_rounds_and_clips_without_wrapping(value: float, dtype: str) -> None:
    for values in (np.array([value]), np.array([value], np.float32) if isinstance(value, float) else np.array([value])):
        stored = to_stored(values, dtype)
        info = np.iinfo(dtype)
        wanted = 0 if np.isnan(values[0]) else min(max(float(values[0]), info.min), info.max)
        assert stored.dtype == np.dtype(dtype)
        assert abs(int(stored[0]) - wanted) <= max(0.5, abs(wanted) * 2**-23)


def test_coded_terms_keep_dicoms_lengths() -> None:
    CodedTerm(value="108369006", scheme="SCT", meaning="Neoplasm")
    for wrong in ({"value": "1" * 17}, {"scheme": ""}, {"meaning": "x" * 65}):
        with pytest.raises(ValidationError):
            CodedTerm(**({"value": "1", "scheme": "SCT", "meaning": "x"} | wrong))
    with pytest.raises(ValidationError):
        Label(name="x", colour=(0, 0, 256))


# --- writing -----------------------------------------------------------------------------------------------------

FILES = [
    AnswerFile("a_labels.png", "image/png", b"one" * 1000),
    AnswerFile("a_restored/0001.dcm", "application/dicom", b"two" * 1000),
    AnswerFile("a_restored/0002.dcm", "application/dicom", b"three"),
]


def _all_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_an_answer_that_is_printed_shows_no_bytes() -> None:
    assert repr(AnswerFile("a.png", "image/png", b"x" * 1000)) == (
        "AnswerFile(name='a.png', media_type='image/png', 1000 bytes)"
    )


def test_files_are_written_below_the_folder_which_is_made(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    paths = write_files(FILES, out)
    assert [path.read_bytes() for path in paths] == [file.data for file in FILES]
    assert _all_in(out) == ["a_labels.png", "a_restored", "a_restored/0001.dcm", "a_restored/0002.dcm"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(paths[0].stat().st_mode) == 0o666 & ~umask
    write_files([FILES[0]._replace(data=b"new")], out)
    assert paths[0].read_bytes() == b"new"


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_full_disk_leaves_nothing(call: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    real, calls = getattr(os, call), []

    def failing(*args: object, **options: object) -> object:
        if any("kept" in str(each) for each in args):
            return real(*args, **options)
        calls.append(args)
        if len(calls) > after:
            if call == "write":  # half of it still fits
                real(args[0], args[1][: len(args[1]) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OutputError, match=r"6005 bytes \(No space left on device\); free space") as caught:
        write_files(FILES, tmp_path / "out")
    assert str(tmp_path) not in str(caught.value)
    assert _all_in(tmp_path) == ["kept.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files(FILES, tmp_path / "out")
    assert _all_in(tmp_path) == []


def test_an_older_answer_survives_a_failing_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(FILES, tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OutputError):
            write_files([file._replace(data=b"new") for file in FILES], tmp_path)
    assert [(tmp_path / file.name).read_bytes() for file in FILES] == [file.data for file in FILES]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
@pytest.mark.parametrize("place", range(3))
def test_a_file_that_cannot_be_replaced_leaves_all_as_they_were(
    links: bool, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others were replaced already, or were not there before."""
    write_files(FILES[:2], tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in _all_in(tmp_path) if (tmp_path / name).is_file()}
    real = os.replace

    def refusing(source: Path, target: Path) -> None:
        if target == tmp_path / FILES[place].name and str(source).endswith(".part"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, target)

    def unlinked(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "replace", refusing)
    if not links:
        monkeypatch.setattr(os, "link", unlinked)
    with pytest.raises(OutputError, match="Nothing was written"):
        write_files([file._replace(data=b"new") for file in FILES], tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert _all_in(tmp_path) == ["a_labels.png", "a_restored", "a_restored/0001.dcm"]


def test_what_cannot_be_put_back_is_said_and_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(FILES, tmp_path)
    real, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match="could not be put back: old and new"):
        write_files([file._replace(data=b"new") for file in FILES], tmp_path)
    assert [(tmp_path / file.name).read_bytes() for file in FILES] == [b"new", FILES[1].data, FILES[2].data]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/b/c.png", "", ".", "a/../b", "a\\b", "x\0y"])
def test_names_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="file name with at most one folder"):
        write_files([AnswerFile(name, "image/png", b"x")], tmp_path / "out")
    assert _all_in(tmp_path) == []


def test_what_is_in_the_way_is_said_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "Jane_Doe").write_text("a file where a folder should be")
    (tmp_path / "x.png").mkdir()
    for call in (
        lambda: write_files(FILES, tmp_path / "Jane_Doe"),
        lambda: write_files([AnswerFile("x.png", "image/png", b"x")], tmp_path),
        lambda: write_image(Image(GREY[None, None], Geometry.picture(7, 11)), tmp_path / "Jane_Doe" / "x.png"),
    ):
        with pytest.raises(OutputError) as caught:
            call()
        assert "Jane" not in str(caught.value)
    assert _all_in(tmp_path) == ["Jane_Doe", "x.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="make it writable"):
        write_files(FILES, tmp_path)
    tmp_path.chmod(0o700)
