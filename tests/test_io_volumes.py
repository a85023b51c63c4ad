"""MetaImage and NRRD: the voxels in the place that SimpleITK gives; and nothing outside of the folder is opened."""

import gzip
import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medae.errors import InputError, UnreadableImage, UnsupportedImage
from medae.image import Image
from medae.io import Limits, encode_labels, encode_restored, read_image
from tests.dicom_made import ALGORITHM, LESION

sitk = pytest.importorskip("SimpleITK")

RNG = np.random.default_rng(2)
SUFFIXES = ("mha", "mhd", "nrrd", "nhdr")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def made(pixels: np.ndarray, directions=None, spacing=(1.1, 0.7, 2.5), origin=(-31.5, 17.25, 40.0), **options):
    """SimpleITK's image of (slices, rows, columns[, components])."""
    image = sitk.GetImageFromArray(pixels, **options)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if directions is not None:
        image.SetDirection(np.asarray(directions).ravel().tolist())
    return image


def expected_affine(image) -> np.ndarray:
    affine = np.eye(4)
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, :3] = (LPS_TO_RAS @ columns)[:, ::-1]
    affine[:3, 3] = LPS_TO_RAS @ image.GetOrigin()
    return affine


@st.composite
def turned(draw) -> np.ndarray:
    """Direction cosines: any rotation, with axes exchanged and flipped."""
    angles = draw(st.lists(st.floats(-180, 180), min_size=3, max_size=3))
    axes = np.eye(3)[draw(st.permutations(range(3)))] * draw(st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3))
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes


@settings(deadline=None, max_examples=40)
@given(
    directions=turned(),
    shape=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    spacing=st.lists(st.floats(0.2, 9), min_size=3, max_size=3),
    suffix=st.sampled_from(SUFFIXES),
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]),
    compress=st.booleans(),
)
def test_what_simpleitk_wrote_is_read(tmp_path_factory, directions, shape, spacing, suffix, dtype, compress) -> None:
    pixels = RNG.integers(-100 if dtype[0] != "u" else 0, 100, shape).astype(dtype)
    image = made(pixels, directions, spacing)
    path = tmp_path_factory.mktemp("volume") / f"scan.{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compress)
    read = read_image(path)
    np.testing.assert_array_equal(read.pixels[0], pixels)
    assert read.pixels.dtype == dtype and read.geometry.unit == "mm"
    np.testing.assert_allclose(read.geometry.affine, expected_affine(image), atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_components_are_channels(tmp_path: Path, suffix: str) -> None:
    pixels = RNG.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    sitk.WriteImage(made(pixels, isVector=True), str(tmp_path / f"scan.{suffix}"))
    read = read_image(tmp_path / f"scan.{suffix}")
    np.testing.assert_array_equal(np.moveaxis(read.pixels, 0, -1), pixels)
    assert read.volumes == 1


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_a_fourth_axis_holds_volumes(tmp_path: Path, suffix: str) -> None:
    pixels = RNG.integers(0, 255, (2, 4, 5, 6)).astype(np.int16)
    image = sitk.GetImageFromArray(pixels, isVector=False)
    image.SetSpacing((1.1, 0.7, 2.5, 3.0))
    sitk.WriteImage(image, str(tmp_path / f"scan.{suffix}"))
    if suffix == "nrrd":  # ITK gives space to time as well, and a space of four axes is none
        with pytest.raises(UnsupportedImage):
            read_image(tmp_path / "scan.nrrd")
        return
    read = read_image(tmp_path / f"scan.{suffix}")
    np.testing.assert_array_equal(read.pixels, pixels)
    assert (read.volumes, read.channels) == (2, 1)
    np.testing.assert_allclose(read.geometry.spacing, (2.5, 0.7, 1.1))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_picture_lies_in_a_plane(tmp_path: Path, suffix: str) -> None:
    pixels = RNG.integers(0, 255, (5, 6)).astype(np.uint8)
    sitk.WriteImage(made(pixels, spacing=(1.1, 0.7), origin=(3, 4)), str(tmp_path / f"scan.{suffix}"))
    read = read_image(tmp_path / f"scan.{suffix}")
    np.testing.assert_array_equal(read.pixels[0, 0], pixels)
    np.testing.assert_allclose(read.geometry.spacing[1:], (0.7, 1.1))


def nrrd(pixels: np.ndarray, *lines: str, data: bytes | None = None) -> bytes:
    """A hand-made NRRD of (..., columns) pixels."""
    head = ["NRRD0005", "# made by hand", "type: short", f"dimension: {pixels.ndim}", "encoding: raw"]
    head += [f"sizes: {' '.join(map(str, pixels.shape[::-1]))}", "endian: little", *lines, "note:=of anything", ""]
    return "\n".join([*head, ""]).encode() + (pixels.astype("<i2").tobytes() if data is None else data)


def test_a_list_of_volumes_in_an_nrrd_first_or_last() -> None:
    pixels = RNG.integers(0, 255, (2, 4, 5, 6)).astype(np.int16)
    space = "space: right-anterior-superior"
    last = nrrd(pixels, space, "space directions: (2,0,0) (0,3,0) (0,0,4) none", "kinds: space space space list")
    first = nrrd(
        np.moveaxis(pixels, 0, -1),
        space,
        "space directions: none (2,0,0) (0,3,0) (0,0,4)",
        "kinds: list space space space",
    )
    for data in (last, first):
        read = read_image(data)
        np.testing.assert_array_equal(read.pixels, pixels)
        assert read.volumes == 2 and read.geometry.axis_codes == "SAR"
        assert read.geometry.spacing == (4, 3, 2)


@pytest.mark.parametrize(
    ("space", "codes"),
    [("right-anterior-superior", "SAR"), ("LAS", "SAL"), ("left-posterior-superior", "SPL"), ("ras", "SAR")],
)
def test_spaces(space: str, codes: str) -> None:
    data = nrrd(np.zeros((2, 3, 4)), f"space: {space}", "space directions: (1,0,0) (0,1,0) (0,0,1)")
    assert read_image(data).geometry.axis_codes == codes


def test_an_nrrd_without_place_is_a_pile_of_pictures_and_with_spacings_in_mm() -> None:
    assert read_image(nrrd(np.zeros((2, 3, 4)))).geometry.unit == "px"
    assert read_image(nrrd(np.zeros((2, 3, 4)), "spacings: 1 2 3")).geometry.spacing_mm == (3, 2, 1)


def test_gzip_and_skips_in_an_nrrd() -> None:
    pixels = RNG.integers(0, 255, (2, 3, 4)).astype("<i2")
    packed = nrrd(pixels, data=gzip.compress(pixels.tobytes())).replace(b"encoding: raw", b"encoding: gzip")
    skipped = nrrd(pixels, "line skip: 1", "byte skip: 2", data=b"text\nab" + pixels.tobytes())
    behind = nrrd(pixels, "byte skip: -1", data=b"any length" + pixels.tobytes())
    for data in (packed, skipped, behind):
        np.testing.assert_array_equal(read_image(data).pixels[0], pixels)


MHA = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\nCompressedData = False\n"
    "ElementSpacing = 1 2 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = {file}\n"
)


def test_big_endian_and_a_header_to_skip(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 255, (2, 3, 4)).astype(">i2")
    np.testing.assert_array_equal(read_image(MHA.format(file="LOCAL").encode() + pixels.tobytes()).pixels[0], pixels)
    (tmp_path / "scan.raw").write_bytes(b"any header" + pixels.tobytes())
    for skip in ("-1", "10"):
        (tmp_path / "scan.mhd").write_text(
            f"ObjectType = Image\nHeaderSize = {skip}\n" + MHA.format(file="scan.raw")[19:]
        )
        np.testing.assert_array_equal(read_image(tmp_path / "scan.mhd").pixels[0], pixels)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "link"])
@pytest.mark.parametrize("kind", ["mhd", "nhdr"])
def test_a_header_leads_nowhere_else(tmp_path: Path, name: str, kind: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(48))
    (inside / "link").symlink_to(tmp_path / "secret")
    data = (
        MHA.format(file=name).encode() if kind == "mhd" else nrrd(np.zeros((2, 3, 4)), f"data file: {name}", data=b"")
    )
    (inside / f"scan.{kind}").write_bytes(data)
    with pytest.raises((UnsupportedImage, UnreadableImage)):
        read_image(inside / f"scan.{kind}")
    with pytest.raises(UnsupportedImage, match="one file that holds both"):
        read_image(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (MHA.format(file="LOCAL").encode()[:60], UnreadableImage),
        (MHA.format(file="LOCAL").encode() + bytes(47), UnreadableImage),
        (MHA.replace("4 3 2", "4 3 -2").format(file="LOCAL").encode(), UnreadableImage),
        (MHA.replace("4 3 2", "40000 30000 20000").format(file="LOCAL").encode(), InputError),
        (MHA.replace("MET_SHORT", "MET_STRING").format(file="LOCAL").encode(), UnsupportedImage),
        (MHA.replace("1 2 3", "1 0 3").format(file="LOCAL").encode() + bytes(48), InputError),
        (MHA.replace("1 2 3", "1 nan 3").format(file="LOCAL").encode() + bytes(48), InputError),
        (MHA.format(file="slice%03d.raw").encode(), UnsupportedImage),
        (nrrd(np.zeros((2, 3, 4)))[:50], UnreadableImage),
        (nrrd(np.zeros((2, 3, 4)))[:-1], UnreadableImage),
        (nrrd(np.zeros((2, 3, 4))).replace(b"4 3 2", b"4 3 2000000000"), InputError),
        (nrrd(np.zeros((2, 3, 4))).replace(b"raw", b"bzip2"), UnsupportedImage),
        (
            nrrd(np.zeros((2, 3, 4)), "space: 3D-right-handed", "space directions: (1,0,0) (0,1,0) (0,0,1)"),
            UnsupportedImage,
        ),
        (nrrd(np.zeros((2, 3, 4)), "space: ras", "space directions: (1,0,0) (1,0,0) (0,0,1)"), InputError),
        (nrrd(np.zeros((2, 3, 4))).replace(b"raw", b"gzip"), UnreadableImage),
    ],
)
def test_what_is_refused(data: bytes, error: type[InputError]) -> None:
    with pytest.raises(error):
        read_image(data)


def test_limits_come_before_the_voxels() -> None:
    with pytest.raises(InputError, match="voxels"):
        read_image(nrrd(np.zeros((2, 3, 4))), limits=Limits(voxels=23))


def test_answers_are_nifti_on_the_same_grid_in_the_same_type() -> None:
    pixels = RNG.integers(0, 255, (2, 3, 4)).astype(np.int16)
    image = read_image(nrrd(pixels, "space: lps", "space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (5,6,7)"))
    restored = image.with_pixels(image.pixels.astype(np.float32) + 0.3)
    (file,) = encode_restored(restored, stem="scan", algorithm=ALGORITHM, description="restored")
    assert file.name == "scan_restored.nii.gz"
    answer = nibabel.Nifti1Image.from_bytes(gzip.decompress(file.data))
    assert answer.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(answer.dataobj).T, pixels)
    np.testing.assert_allclose(answer.affine, np.diag([-1, -2, 3, 1]) + np.outer([-5, -6, 7, 0], [0, 0, 0, 1]))


# -- volumes of NIfTI --------------------------------------------------------------------------------------------------


def nifti4d(pixels: np.ndarray, **fields: object) -> bytes:
    """(T, S, R, W) with a repetition time, scaling and units."""
    made = nibabel.Nifti1Image(pixels.T, np.diag([2.0, 3, 4, 1]))
    made.header.set_xyzt_units("mm", "sec")
    made.header["pixdim"][4] = 1.5
    return made.to_bytes()


def test_volumes_are_answered_as_volumes() -> None:
    pixels = RNG.integers(0, 255, (3, 2, 4, 5)).astype(np.int16)
    image = read_image(nifti4d(pixels))
    np.testing.assert_array_equal(image.pixels, pixels)
    assert (image.volumes, image.channels) == (3, 1)
    for number in range(3):
        np.testing.assert_array_equal(image.volume(number).pixels[0], pixels[number])
    labels = image.with_pixels((image.pixels % 2).astype(np.uint8))
    (file,) = encode_labels(labels, stem="scan", labels_info=[LESION], algorithm=ALGORITHM)
    answer = nibabel.Nifti1Image.from_bytes(gzip.decompress(file.data))
    np.testing.assert_array_equal(np.asarray(answer.dataobj).T, pixels % 2)
    assert answer.header.get_xyzt_units() == ("mm", "sec") and answer.header["pixdim"][4] == 1.5
    (file,) = encode_restored(image, stem="scan", algorithm=ALGORITHM, description="restored")
    np.testing.assert_array_equal(read_image(file.data).pixels, pixels)


def test_volumes_of_channels_keep_their_order() -> None:
    pixels = RNG.integers(0, 255, (2, 3, 4, 5, 6)).astype(np.uint8)  # volumes, channels, slices, rows, columns
    data = nibabel.Nifti1Image(pixels.transpose(4, 3, 2, 0, 1), np.eye(4)).to_bytes()
    image = read_image(data)
    assert (image.volumes, image.channels) == (2, 3)
    np.testing.assert_array_equal(image.pixels.reshape(pixels.shape), pixels)
    (file,) = encode_restored(image, stem="scan", algorithm=ALGORITHM, description="restored")
    again = read_image(file.data)
    np.testing.assert_array_equal(again.pixels, image.pixels)
    assert again.volumes == 2


def test_volumes_that_do_not_divide_are_refused() -> None:
    image = read_image(nifti4d(np.zeros((3, 2, 4, 5), np.int16)))
    with pytest.raises(InputError):
        Image(image.pixels, image.geometry, volumes=2)


def test_four_axes_of_the_zoo_are_what_nibabel_reads(shared_data: Path) -> None:
    found = 0
    for path in sorted((shared_data / "nifti_zoo").rglob("*.nii*")):
        peer = nibabel.load(path)
        if len(peer.shape) == 4:
            image = read_image(io.BytesIO(path.read_bytes()).getvalue())
            np.testing.assert_allclose(image.pixels.T, np.moveaxis(peer.get_fdata(), 3, -1), rtol=1e-6)
            assert image.volumes == peer.shape[3]
            found += 1
    assert found > 4
