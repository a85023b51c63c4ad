"""Reading DICOM: where every pixel lies and what it is worth, told by the tags themselves and by two other readers."""

from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from medae.io.dicom import DicomSource, read_dicom
from tests.dicom_made import DIRECTIONS, as_file, as_files, ct, ct_series, sample, series_folder, written

RAS = np.array([-1.0, -1.0, 1.0])
VOLUME = np.random.default_rng(0).permutation(4 * 7 * 5).reshape(4, 7, 5).astype(np.int16)


def world_by_tags(dataset: Dataset, row: int, column: int) -> np.ndarray:
    """PS3.3 C.7.6.2.1.1, turned to RAS+."""
    orientation = np.array(dataset.ImageOrientationPatient, float)
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    at = np.array(dataset.ImagePositionPatient, float)
    return (at + orientation[:3] * between_columns * column + orientation[3:] * between_rows * row) * RAS


def rotated(seed: int) -> np.ndarray:
    turned, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return turned[:2]


def assert_every_pixel_where_the_tags_say(image, datasets) -> None:
    by_value = {}
    for dataset in datasets:
        for (row, column), stored in np.ndenumerate(dataset.pixel_array):
            value = stored * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
            by_value[value] = world_by_tags(dataset, row, column)
    for (_, s, row, column), value in np.ndenumerate(image.pixels):
        np.testing.assert_allclose(image.geometry.world([s, row, column]), by_value[float(value)], atol=1e-3)


# -- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("step", [2.5, -2.5], ids=["forward", "reversed"])
def test_every_pixel_lies_where_its_tags_say(directions, step):
    datasets = ct_series(VOLUME, directions, step=step)
    files = as_files(datasets)
    image = read_dicom([files[at] for at in (2, 0, 3, 1)])
    assert image.pixels.dtype == np.float32 and image.geometry.unit == "mm"
    assert image.geometry.frame_of_reference == datasets[0].FrameOfReferenceUID
    assert_every_pixel_where_the_tags_say(image, datasets)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.05, 20), st.permutations(range(4)))
def test_every_pixel_lies_where_its_tags_say_at_any_angle(seed, step, order):
    files = as_files(ct_series(VOLUME, rotated(seed).tolist(), step=step))
    assert_every_pixel_where_the_tags_say(read_dicom([files[at] for at in order]), map(dcmread, map(BytesIO, files)))


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
def test_simpleitk_finds_the_same_values_at_the_same_places(directions, tmp_path):
    paths = written(as_files(ct_series(VOLUME, directions)), tmp_path)
    assert_simpleitk_agrees(read_dicom(paths), tmp_path)


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
def test_highdicom_finds_the_same_values_at_the_same_places(directions):
    datasets = ct_series(VOLUME, directions)
    assert_highdicom_agrees(read_dicom(as_files(datasets)), datasets)


def test_real_series_agree_with_both():
    paths = series_folder("98892001/CT5N")
    image = read_dicom(paths)
    assert image.pixels.shape == (1, 5, 16, 16) and image.geometry.axis_codes == "SPL"
    np.testing.assert_allclose(image.geometry.spacing, (2.5, 0.488281, 0.488281), atol=1e-6)
    assert_simpleitk_agrees(image, paths[0].parent)
    assert_highdicom_agrees(image, [dcmread(path) for path in paths])


@pytest.mark.parametrize("name", ["udacity_hippocrop_mr/Study1/13_HCropVolume", "udacity_study3_t1_mr"])
def test_shared_series_agree_with_both(shared_data, name):
    folder = shared_data / "dicom_series" / name
    paths = sorted(folder.glob("*.dcm"))
    image = read_dicom(paths)
    assert_simpleitk_agrees(image, folder)
    assert_highdicom_agrees(image, [dcmread(path) for path in paths])


def some_indices(image, count: int = 200) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([rng.integers(0, length, count) for length in image.geometry.shape], axis=1)


def assert_simpleitk_agrees(image, folder: Path) -> None:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other = reader.Execute()
    assert sorted(other.GetSize()) == sorted(image.geometry.shape)
    for index in some_indices(image):
        lps = image.geometry.world(index) * RAS
        at = np.array(other.TransformPhysicalPointToContinuousIndex(lps.tolist()))
        np.testing.assert_allclose(at, at.round(), atol=1e-2)
        assert other.GetPixel([int(i) for i in at.round()]) == pytest.approx(image.pixels[(0, *index)])


def assert_highdicom_agrees(image, datasets) -> None:
    volume = hd.get_volume_from_series(datasets)
    for index in some_indices(image):
        lps = image.geometry.world(index) * RAS
        at = volume.map_reference_to_indices(lps[None])[0]
        np.testing.assert_allclose(at, at.round(), atol=1e-2)
        assert volume.array[tuple(at.round().astype(int))] == pytest.approx(image.pixels[(0, *index)])


def test_a_tilted_gantry_shears_the_grid():
    def shift(dataset, index):
        dataset.ImagePositionPatient = [0.0, 0.9 * index, 2.5 * index]

    datasets = ct_series(VOLUME, change=shift)
    assert_every_pixel_where_the_tags_say(read_dicom(as_files(datasets)), datasets)


@pytest.mark.parametrize(
    ("between", "thick", "expected"), [(6.5, 5, 6.5), (-6.5, 5, 6.5), ("", 5, 5), (0, 5, 5), ("", "", 1), ("", 0, 1)]
)
def test_a_single_slice_reaches_as_far_as_its_header_says(between, thick, expected):
    image = read_dicom([as_file(ct(VOLUME[0], SpacingBetweenSlices=between, SliceThickness=thick))])
    assert image.geometry.spacing[0] == pytest.approx(expected)


def test_a_radiograph_is_a_picture_with_the_spacing_of_its_detector():
    image = read_dicom(series_folder("77654033/CR1"))
    assert image.geometry.unit == "mm" and image.geometry.shape == (1, 16, 16)
    np.testing.assert_allclose(image.geometry.spacing[1:], (0.1, 0.1))


def test_a_secondary_capture_without_spacing_is_a_picture_in_pixels():
    image = read_dicom([sample("SC_rgb_jpeg_dcmd.dcm")])
    assert image.geometry.unit == "px" and image.pixels.shape == (3, 1, 256, 256)


# -- values -----------------------------------------------------------------------------------------------------------


def test_each_instance_has_its_own_rescale():
    def differ(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + index, -10 * index

    image = read_dicom(as_files(ct_series(VOLUME, change=differ)))
    for index in range(4):
        np.testing.assert_array_equal(image.pixels[0, index], VOLUME[index] * (1 + index) - 10 * index)


@pytest.mark.parametrize(("dtype", "bits"), [("u2", 16), ("i2", 16), ("u2", 12), ("i2", 12), ("i2", 13), ("u2", 9)])
def test_stored_values_of_any_depth(dtype, bits):
    half = 1 << (bits - 1)
    stored = np.array([[0, 1, half - 1], [-1, -half, 2] if dtype == "i2" else [half, 2 * half - 1, 2]], dtype)
    dataset = ct(stored, BitsStored=bits, HighBit=bits - 1, RescaleIntercept=None, RescaleSlope=None)
    np.testing.assert_array_equal(read_dicom([as_file(dataset)]).pixels[0, 0], stored)


def test_bits_beyond_the_stored_ones_are_not_pixels():
    stored = np.array([[5, 0xFFF], [0, 7]], np.uint16)
    dataset = ct(stored | 0x8000, BitsStored=12, HighBit=11, RescaleIntercept=0)  # an old overlay in bit 15
    np.testing.assert_array_equal(read_dicom([as_file(dataset)]).pixels[0, 0], stored)


def test_monochrome1_stays_as_stored():
    dataset = ct(VOLUME[0], PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0)
    np.testing.assert_array_equal(read_dicom([as_file(dataset)]).pixels[0, 0], VOLUME[0])


@pytest.mark.parametrize(
    ("tags", "padded"),
    [
        ({"PixelPaddingValue": -2000}, [-2000]),
        ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}, [-2000, -1995, -1990]),
        ({"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000}, [-2000, -1995, -1990]),
        ({"PixelPaddingValue": None}, []),
    ],
)
def test_padding_is_noted(tags, padded):
    stored = np.array([[-2000, -1995, -1990], [0, 1, 2]], np.int16)
    limit = tags.get("PixelPaddingRangeLimit")
    dataset = ct(stored, PixelPaddingValue=tags["PixelPaddingValue"])
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", "SS", limit)
    source = read_dicom([as_file(dataset)]).source
    assert isinstance(source, DicomSource)
    expected = np.isin(stored, padded)
    if padded:
        np.testing.assert_array_equal(source.padding, expected[None])
    else:
        assert source.padding is None


def test_padding_written_as_unsigned_is_understood():
    dataset = ct(np.array([[-2000, 5]], np.int16))
    dataset["PixelPaddingValue"].VR = "US"
    dataset["PixelPaddingValue"].value = 65536 - 2000
    np.testing.assert_array_equal(read_dicom([as_file(dataset)]).source.padding, [[[True, False]]])


def test_source_has_the_headers_in_slice_order_and_no_pixels():
    image = read_dicom(as_files(ct_series(VOLUME))[::-1])
    assert [header.InstanceNumber for header in image.source.datasets] == [1, 2, 3, 4]
    assert not any("PixelData" in header for header in image.source.datasets)


@pytest.mark.parametrize(
    "name",
    ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"],
)
def test_lossless_transfer_syntaxes_hold_the_same_image(name):
    one, other = read_dicom([sample("MR_small.dcm")]), read_dicom([sample(f"MR_small_{name}.dcm")])
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.geometry.affine, other.geometry.affine)
    assert other.pixels.dtype.isnative


@pytest.mark.parametrize(("kind", "count"), [("J2KR", 7), ("JLSL", 5), ("JPLL", 5), ("RLE", 7)])
def test_lossless_transfer_syntaxes_hold_the_same_image_in_the_wg04_set(shared_data, kind, count):
    folder = shared_data / "dicom_zoo" / "wg04"
    paths = sorted((folder / kind).iterdir())
    assert len(paths) == count
    for path in paths:
        reference = read_dicom([folder / "REF" / path.name.replace(kind, "UNC")])
        np.testing.assert_array_equal(read_dicom([path]).pixels, reference.pixels)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", 0),
        ("SC_ybr_full_422_uncompressed.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 1),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 5),
        ("SC_rgb_jpeg_dcmtk.dcm", 5),
        ("SC_rgb_gdcm_KY.dcm", 2),
    ],
)
def test_colour_becomes_rgb_in_its_own_depth(name, tolerance):
    image = read_dicom([sample(name)])
    assert image.pixels.shape == (3, 1, 100, 100) and image.pixels.dtype == np.uint8
    for row, colour in [(5, (255, 0, 0)), (15, (255, 128, 128)), (25, (0, 255, 0)), (95, (255, 255, 255))]:
        np.testing.assert_allclose(image.pixels[:, 0, row, 50].astype(int), colour, atol=tolerance)


def test_palette_colour_becomes_rgb():
    from pydicom.pixels import apply_color_lut

    dataset = dcmread(sample("examples_palette.dcm"))
    image = read_dicom([sample("examples_palette.dcm")])
    expected = apply_color_lut(dataset.pixel_array, dataset) >> 8
    np.testing.assert_array_equal(np.moveaxis(image.pixels[:, 0], 0, -1), expected)
    assert image.pixels.dtype == np.uint8 and len(np.unique(image.pixels.reshape(3, -1), axis=1).T) > 100


def test_sixteen_bit_colour_keeps_its_depth():
    assert read_dicom([sample("SC_rgb_rle_16bit.dcm")]).pixels.dtype == np.uint16
