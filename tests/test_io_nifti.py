"""NIfTI: every voxel at its place, on tilted, permuted, flipped, anisotropic grids. Judges: nibabel and SimpleITK."""

import gzip
import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from medae.errors import GeometryError, InputError, OutputError, UnreadableImage, UnsupportedImage
from medae.image import Geometry, Image
from medae.io import encode_labels_nifti, encode_restored, read_image, write_image
from medae.io.answer import Algorithm
from medae.io.nifti import NiftiSource
from tests.conftest import tilted_affine

WE = Algorithm("denoiser", "0.3.0", "sha256:" + 64 * "b")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])

shapes = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8))


@st.composite
def grids(draw: st.DrawFn) -> Geometry:
    """Tilted, permuted, flipped, anisotropic, odd-sized."""
    axes = np.eye(3)[list(draw(st.permutations(range(3))))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    tilt = tilted_affine((1, 1, 1), seed=draw(st.integers(0, 99)))[:3, :3]
    spacing = draw(st.tuples(*[st.floats(0.2, 6)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return Geometry(draw(shapes), affine)


def _nifti(data: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> bytes:
    image = nibabel.Nifti1Image(data, np.diag([2.0, 3, 4, 1]) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    return image.to_bytes()


def _patched(data: bytes, form: str, at: int, *values: float) -> bytes:
    """Fields of the header overwritten, past nibabel's own repairs."""
    raw = bytearray(data)
    struct.pack_into(form, raw, at, *values)
    return bytes(raw)


@given(grids(), st.sampled_from([".nii", ".nii.gz"]))
@settings(deadline=None, max_examples=40)
def test_written_and_read_is_the_same_place_to_all(
    tmp_path_factory: pytest.TempPathFactory, grid: Geometry, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("nifti") / f"x{suffix}"
    pixels = np.arange(np.prod(grid.shape), dtype=np.int16).reshape(1, *grid.shape)
    write_image(Image(pixels, grid), path)
    again = read_image(path)
    assert np.array_equal(again.pixels, pixels) and again.pixels.dtype == np.int16
    again.geometry.require_same_grid(grid)
    theirs, itk = nibabel.load(path), SimpleITK.ReadImage(str(path))
    values = np.asanyarray(theirs.dataobj)
    for corner in itertools.product(*[(0, length // 2, length - 1) for length in grid.shape]):
        world, value = grid.world(corner), pixels[0][corner]
        ijk = corner[::-1]
        assert values[ijk] == value and itk.GetPixel(ijk) == value
        assert np.allclose(nibabel.affines.apply_affine(theirs.affine, ijk), world, atol=1e-3)
        assert np.allclose(LPS_TO_RAS @ itk.TransformIndexToPhysicalPoint(ijk), world, atol=1e-3)


@given(grids(), st.sampled_from(["<", ">"]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_what_nibabel_wrote_lies_where_nibabel_says(grid: Geometry, order: str, is_second: bool) -> None:
    kind, head = (
        (nibabel.Nifti2Image, nibabel.Nifti2Header) if is_second else (nibabel.Nifti1Image, nibabel.Nifti1Header)
    )
    values = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape[::-1])
    theirs = kind(values, grid.affine[:, [2, 1, 0, 3]], head(endianness=order))
    image = read_image(theirs.to_bytes())
    assert np.array_equal(image.pixels[0], values.T) and image.pixels.dtype.isnative
    assert image.geometry.shape == grid.shape
    affine = kind.from_bytes(theirs.to_bytes()).affine
    assert np.allclose(image.geometry.affine[:, [2, 1, 0, 3]], affine, atol=1e-6)


def test_sform_wins_over_qform_and_qform_over_nothing() -> None:
    tilted, straight = tilted_affine(), np.diag([1.0, 2, 3, 1])
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None)
    image.set_qform(straight, code=1)
    rows = _patched(image.to_bytes(), "<12f", 280, *tilted[:3].ravel())
    for code, affine in ((2, tilted), (0, straight)):
        data = _patched(rows, "<h", 254, code)
        assert np.allclose(nibabel.Nifti1Image.from_bytes(data).affine, affine)
        assert np.allclose(read_image(data).geometry.affine[:, [2, 1, 0, 3]], affine)
    data = _patched(rows, "<2h", 252, 0, 0)
    judge = nibabel.Nifti1Image.from_bytes(data).affine
    assert np.allclose(read_image(data).geometry.affine[:, [2, 1, 0, 3]], judge)


@pytest.mark.parametrize(("units", "factor"), [("meter", 1000.0), ("mm", 1.0), ("micron", 1e-3), ("unknown", 1.0)])
def test_units_become_mm_and_stay_in_the_file(units: str, factor: float, tmp_path: Path) -> None:
    theirs = nibabel.Nifti1Image(np.ones((3, 4, 5), np.int16), tilted_affine())
    theirs.header.set_xyzt_units(units)
    image = read_image(theirs.to_bytes())
    assert np.allclose(image.geometry.affine[:3, [2, 1, 0, 3]], tilted_affine()[:3] * factor, rtol=1e-6)
    write_image(image, tmp_path / "x.nii")
    again = nibabel.load(tmp_path / "x.nii")
    assert again.header.get_xyzt_units()[0] == units
    assert np.allclose(again.affine, theirs.affine)


def test_scaled_values_are_float32_and_unscaled_ones_are_stored() -> None:
    stored = np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5)
    image = read_image(_patched(_nifti(stored), "<2f", 112, 0.1, -5))
    assert image.pixels.dtype == np.float32
    assert np.array_equal(image.pixels[0], (stored.T * np.float64(np.float32(0.1)) - 5).astype(np.float32))
    for slope in (0.0, 1.0, np.nan):
        image = read_image(_patched(_nifti(stored), "<2f", 112, slope, 0))
        assert image.pixels.dtype == np.int16 and np.array_equal(image.pixels[0], stored.T)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("scaling", [(1.0, 0.0), (0.25, -1024.0), (0.0, 0.0)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_restored_has_type_scaling_and_codes_of_its_source(
    dtype: str, scaling: tuple[float, float], order: str
) -> None:
    stored = np.random.default_rng(1).integers(0, 250, (5, 4, 3)).astype(dtype)
    theirs = nibabel.Nifti1Image(stored, tilted_affine(), nibabel.Nifti1Header(endianness=order))
    theirs.set_data_dtype(dtype)
    theirs.set_sform(tilted_affine(), code=4)
    theirs.set_qform(tilted_affine(), code=3)
    theirs.header["descrip"] = b"Doe^Jane 1970"
    theirs.header["db_name"] = b"Doe^Jane"
    data = _patched(theirs.to_bytes(), order + "2f", 112, *scaling)
    image = read_image(data)
    (answer,) = encode_restored(
        image.with_pixels(image.pixels.astype(np.float32)), stem="x", algorithm=WE, description=""
    )
    assert (answer.name, answer.media_type) == ("x_restored.nii.gz", "application/gzip")
    raw = gzip.decompress(answer.data)
    assert b"Doe" not in raw and b"medae denoiser" in raw
    went, came = nibabel.Nifti1Image.from_bytes(raw), nibabel.Nifti1Image.from_bytes(data)
    assert went.get_data_dtype() == np.dtype(dtype)
    assert np.array_equal(went.dataobj.get_unscaled(), stored)
    assert np.array_equal(np.asanyarray(went.dataobj), np.asanyarray(came.dataobj))
    for field in ("qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_x", "pixdim", "xyzt_units", "dim"):
        assert np.array_equal(went.header[field], came.header[field]), field


def test_restored_values_are_rounded_and_clipped() -> None:
    image = read_image(_nifti(np.zeros((4, 1, 1), np.uint8)))
    values = np.array([-3.0, 1.5, 2.51, 300], np.float32).reshape(1, 1, 1, 4)
    (answer,) = encode_restored(image.with_pixels(values), stem="x", algorithm=WE, description="")
    assert read_image(answer.data).pixels.ravel().tolist() == [0, 2, 3, 255]


def test_a_fourth_axis_of_one_is_kept_and_a_sixth_is_refused() -> None:
    image = read_image(_nifti(np.ones((3, 4, 5, 1), np.int16)))
    assert image.geometry.shape == (5, 4, 3)
    (answer,) = encode_restored(image, stem="x", algorithm=WE, description="")
    assert nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.data)).shape == (3, 4, 5, 1)
    with pytest.raises(UnsupportedImage, match="volumes along the fourth"):
        read_image(_nifti(np.ones((3, 4, 5, 1, 1, 7), np.int16)))


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_channels_lie_along_the_fifth_axis(tmp_path: Path, channels: int, tilted_volume: Image) -> None:
    pixels = np.concatenate([tilted_volume.pixels + n for n in range(channels)])
    write_image(tilted_volume.with_pixels(pixels), tmp_path / "x.nii.gz")
    again = read_image(tmp_path / "x.nii.gz")
    assert np.array_equal(again.pixels, pixels)
    itk = SimpleITK.ReadImage(str(tmp_path / "x.nii.gz"))
    assert itk.GetNumberOfComponentsPerPixel() == channels
    assert itk.GetPixel((10, 3, 2)) == tuple(pixels[:, 2, 3, 10])
    assert nibabel.load(tmp_path / "x.nii.gz").shape == (11, 9, 7, 1, channels)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_rgb_voxels_are_channels_and_are_answered_as_rgb(names: str) -> None:
    voxels = np.zeros((3, 4, 5), [(name, "u1") for name in names])
    for n, name in enumerate(names):
        voxels[name] = np.arange(60).reshape(3, 4, 5) + n
    image = read_image(_nifti(voxels))
    assert image.channels == 3 and image.pixels.dtype == np.uint8
    assert np.array_equal(image.pixels[1, 4, 3, 2], voxels["G"][2, 3, 4])
    (answer,) = encode_restored(image.with_pixels(image.pixels + 0.2), stem="x", algorithm=WE, description="")
    went = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.data))
    assert went.get_data_dtype().names == ("R", "G", "B")
    assert np.array_equal(np.asanyarray(went.dataobj)["B"], voxels["B"])
    assert np.array_equal(read_image(answer.data).pixels, image.pixels)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (_nifti(np.ones((3, 4, 5), np.complex64)), UnsupportedImage, "data type 32"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<h", 70, 1536), UnsupportedImage, "data type 1536"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<h", 70, 77), UnsupportedImage, "data type 77"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<h", 40, 9), UnreadableImage, "9 axes"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<h", 44, 0), UnreadableImage, "at least 1"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<h", 44, -4), UnreadableImage, "at least 1"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<f", 108, np.nan), UnreadableImage, "impossible place"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<f", 108, 17), UnreadableImage, "impossible place"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<2f", 112, 2, np.inf), UnreadableImage, "scaling"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<4f", 280, 0, 0, 0, 0), GeometryError, "singular|size along"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<4f", 280, np.nan, 0, 0, 0), GeometryError, "not a number"),
        (_patched(_nifti(np.ones((3, 4, 5))), "<8f", 280, 2, 2, 0, 0, 2, 2, 0, 0), GeometryError, "singular"),
        (_nifti(np.ones((3, 4, 5)))[:-1], UnreadableImage, "truncated"),
        (gzip.compress(_nifti(np.ones((3, 4, 5)))[:-1]), UnreadableImage, "truncated"),
        (_nifti(np.ones((3, 4, 5)))[:348], UnreadableImage, "truncated"),
        (_nifti(np.ones((3, 4, 5)))[:347], UnsupportedImage, "unknown kind"),
    ],
)
def test_bad_headers_are_refused_with_a_reason(data: bytes, error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_image(data)


def test_zero_spacing_and_broken_rotation_in_the_qform() -> None:
    image = nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), None)
    image.set_qform(tilted_affine(), code=1)
    image.header["sform_code"] = 0
    data = image.to_bytes()
    read_image(data)
    for bad in (
        _patched(data, "<f", 84, 0.0),  # pixdim[2]
        _patched(data, "<f", 84, -2.0),
        _patched(data, "<f", 84, np.nan),
        _patched(data, "<3f", 256, 0.9, 0.9, 0.9),  # no unit quaternion
    ):
        with pytest.raises(GeometryError):
            read_image(bad)


def test_nan_and_inf_are_kept_for_the_model_to_refuse() -> None:
    values = np.array([np.nan, np.inf, 1]).reshape(3, 1, 1)
    assert np.array_equal(read_image(_nifti(values)).pixels.ravel(), values.ravel(), equal_nan=True)
    overflowing = read_image(_patched(_nifti(np.full((2, 2, 2), 1e30)), "<2f", 112, 1e30, 0))
    assert np.isinf(overflowing.pixels).all()


def test_a_sheared_grid_is_said_by_the_sform_alone(tmp_path: Path) -> None:
    affine = tilted_affine()
    affine[:3, 0] += 0.4 * affine[:3, 1]
    write_image(Image(np.ones((1, 3, 4, 5), np.uint8), Geometry((3, 4, 5), affine)), tmp_path / "x.nii")
    header = nibabel.load(tmp_path / "x.nii").header
    assert (header["qform_code"], header["sform_code"]) == (0, 1)
    assert np.allclose(read_image(tmp_path / "x.nii").geometry.affine, affine, atol=1e-5)


def test_an_image_that_moved_gets_a_header_of_its_own(tmp_path: Path) -> None:
    image = read_image(_nifti(np.ones((3, 4, 5), np.uint8), tilted_affine()))
    for offset, shape in (((1, 0, 0), (4, 4, 3)), ((0.5, 2, -1), (5, 4, 3))):
        place = image.geometry.moved(offset, shape)
        write_image(Image(np.ones((1, *shape), np.uint8), place, image.source), tmp_path / "x.nii")
        read_image(tmp_path / "x.nii").geometry.require_same_grid(place)


@pytest.mark.parametrize("dtype", ["bool", "float16", "uint64", "int8"])
def test_any_pixels_are_written(tmp_path: Path, dtype: str, tilted_volume: Image) -> None:
    pixels = (tilted_volume.pixels > 20).astype(dtype)
    write_image(tilted_volume.with_pixels(pixels), tmp_path / "x.nii")
    assert np.array_equal(read_image(tmp_path / "x.nii").pixels, pixels)


def test_long_axes_need_the_second_nifti(tmp_path: Path) -> None:
    pixels = np.arange(40_000, dtype=np.uint16).reshape(1, 1, 1, -1)
    write_image(Image(pixels, Geometry((1, 1, 40_000), np.eye(4))), tmp_path / "x.nii")
    assert isinstance(nibabel.load(tmp_path / "x.nii"), nibabel.Nifti2Image)
    assert np.array_equal(read_image(tmp_path / "x.nii").pixels, pixels)


def test_labels_of_any_source_as_nifti(tilted_volume: Image) -> None:
    labels = tilted_volume.with_pixels((tilted_volume.pixels % 3).astype(np.int64))
    (answer,) = encode_labels_nifti(labels, stem="x")
    assert answer.name == "x_labels.nii.gz"
    went = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.data))
    assert went.get_data_dtype() == np.uint8 and went.header["intent_code"] == 1002
    assert np.allclose(went.affine[:, [2, 1, 0, 3]], tilted_volume.geometry.affine, atol=1e-5)
    assert np.array_equal(np.asanyarray(went.dataobj), labels.pixels[0].T)
    with pytest.raises(OutputError, match="whole numbers"):
        encode_labels_nifti(tilted_volume.with_pixels(tilted_volume.pixels + 0.5), stem="x")


def test_real_volumes_lie_where_nibabel_says(shared_data: Path, tmp_path: Path) -> None:
    read = 0
    for path in sorted((shared_data / "nifti_zoo").glob("*/*")):
        try:
            image = read_image(path)
        except InputError as error:
            assert len(str(error)) > 30
            continue
        theirs = nibabel.load(path)
        assert np.allclose(image.geometry.affine[:, [2, 1, 0, 3]], theirs.affine, atol=1e-5)
        expected = np.asanyarray(theirs.dataobj).squeeze()
        assert np.allclose(image.pixels.T.squeeze(), expected, rtol=1e-6, equal_nan=True)
        assert isinstance(image.source, NiftiSource)
        write_image(image, tmp_path / "x.nii.gz")
        again = nibabel.load(tmp_path / "x.nii.gz")
        assert np.array_equal(again.affine, theirs.affine)
        assert np.allclose(np.asanyarray(again.dataobj).squeeze(), expected, rtol=1e-6, equal_nan=True)
        read += 1
    assert read >= 6
