"""Reading DICOM: where every pixel lies and what it is worth, told by the tags themselves and by two other readers."""

import logging
import os
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from medae.errors import (
    GeometryError,
    LimitExceeded,
    MedaeError,
    SeriesError,
    UnreadableImage,
    UnsupportedImage,
)
from medae.io.dicom import DicomSource, group_series, is_dicom, read_dicom
from medae.io.guard import Limits
from tests.dicom_made import DIRECTIONS, as_file, as_files, ct, ct_series, sample, series_folder

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


def written(files: list[bytes], folder: Path) -> list[Path]:
    paths = [folder / f"{at}.dcm" for at in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths


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


# -- recognised -------------------------------------------------------------------------------------------------------


def test_files_without_preamble_or_meta_are_read():
    whole = as_file(ct(VOLUME[0]))
    expected = read_dicom([whole]).pixels
    bare = []
    for implicit, little in ((True, True), (False, True), (False, False)):
        dataset = dcmread(BytesIO(whole))
        if not little:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        del dataset.file_meta, dataset.preamble
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
        write_dataset(buffer, dataset)
        bare.append(buffer.getvalue())
    for data in (whole[132:], *bare):
        assert is_dicom(data[:132])
        np.testing.assert_array_equal(read_dicom([data]).pixels, expected)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"DICM",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
        struct.pack("<i", 348),
        struct.pack(">i", 540),
        b"\x1f\x8b\x08\0\0\0\0\0",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"a,b,c\n1,2,3\n",
        bytes(200),
        b"RIFF",
        b"BM",
        b"\x08\0\0\0\xff\xff\xff\xff",
    ],
)
def test_other_files_are_not_taken_for_dicom(head):
    assert not is_dicom(head.ljust(132, b"\x20") if len(head) > 8 else head)
    with pytest.raises((UnreadableImage, UnsupportedImage)):
        read_dicom([head])


# -- refused ----------------------------------------------------------------------------------------------------------


def refusal(error: type[MedaeError], *files: bytes | Path, limits: Limits | None = None) -> str:
    with pytest.raises(error) as caught:
        read_dicom(list(files), limits or Limits())
    assert type(caught.value) is error or error is UnsupportedImage
    return str(caught.value)


def test_empty():
    assert "empty" in refusal(UnreadableImage, b"")
    assert "no files" in refusal(SeriesError)


def test_missing_file(tmp_path):
    assert "cannot be opened" in refusal(UnreadableImage, tmp_path / "Mustermann.dcm")


def test_truncated_pixels():
    data = as_file(ct(VOLUME[0]))
    data = data[: data.rindex(VOLUME[0].tobytes()) + 20]
    assert "truncated" in refusal(UnreadableImage, data)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rtplan.dcm", "holds no picture"),
        ("reportsi.dcm", "holds no picture"),
        ("dicomdirtests/DICOMDIR", "holds no picture"),
        ("liver_1frame.dcm", "is a segmentation"),
        ("rtdose_1frame.dcm", "radiotherapy dose"),
        ("examples_ybr_color.dcm", "30 frames"),
        ("SC_rgb_rle_32bit.dcm", "32 of 32 bits"),
        ("image_dfl.dcm", "deflated"),
    ],
)
def test_other_objects(name, words):
    assert words in refusal(UnsupportedImage, sample("CT_small.dcm").parent / name)


def test_a_header_without_pixels():
    assert "no pixel data" in refusal(UnreadableImage, as_file(ct(VOLUME[0], PixelData=None)))


@pytest.mark.parametrize("name", ["Rows", "Columns"])
def test_no_size(name):
    refusal(UnsupportedImage, as_file(ct(VOLUME[0], **{name: None})))


def test_a_modality_table():
    dataset = ct(VOLUME[0], ModalityLUTSequence=[Dataset()])
    assert "look-up table" in refusal(UnsupportedImage, as_file(dataset))


@pytest.mark.parametrize("tags", [{"BitsAllocated": 1, "BitsStored": 1}, {"HighBit": 12}, {"BitsStored": 0}])
def test_odd_bits(tags):
    assert "bits" in refusal(UnsupportedImage, as_file(ct(VOLUME[0], **tags)))


def test_unknown_colour_space():
    assert "colour space" in refusal(UnsupportedImage, as_file(ct(VOLUME[0], PhotometricInterpretation="CMYK")))


def test_zero_slope():
    assert "rescale" in refusal(UnreadableImage, as_file(ct(VOLUME[0], RescaleSlope=0)))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PixelSpacing": [0, 1]}, "above 0"),
        ({"PixelSpacing": [-1, 1]}, "above 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.866, 0]}, "perpendicular"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "unit vectors"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "6 finite"),
        ({"ImagePositionPatient": [1, 0]}, "3 and"),
    ],
)
def test_impossible_geometry(tags, words):
    assert words in refusal(GeometryError, as_file(ct(VOLUME[0], **tags)))


def test_mixed_series_names_what_was_found_and_no_patient():
    files = series_folder("98892001/CT5N") + series_folder("98892003/MR700")[:2] + series_folder("98892001/CT2N")[:1]
    message = refusal(SeriesError, *files)
    assert "8 files are not one series but 4" in message
    assert "5 x CT 16x16 axial; " in message and message.count("1 x MR 16x16 oblique") == 2 and "localiser" in message
    dataset = dcmread(files[0])
    for name in ("SeriesInstanceUID", "SOPInstanceUID", "PatientName", "PatientID"):
        assert str(dataset[name].value) not in message
    assert str(files[0]) not in message and files[0].name not in message


@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesInstanceUID": "1.2.3"},
        {"FrameOfReferenceUID": "1.2.3"},
        {"PixelSpacing": [0.7, 1.2]},
        {"ImageOrientationPatient": [1, 0, 0, 0, 0.995, 0.0998749]},
        {"Modality": "PT"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImagePositionPatient": None},
    ],
)
def test_one_foreign_slice_is_refused(tags):
    def spoil(dataset, index):
        for name, value in tags.items() if index == 2 else ():
            if value is None:
                del dataset[name]
            else:
                setattr(dataset, name, value)

    assert "are not one series but 2: 3 x CT 7x5 axial" in refusal(
        SeriesError, *as_files(ct_series(VOLUME, change=spoil))
    )


def test_a_modality_that_could_be_anything_is_not_repeated():
    message = refusal(SeriesError, as_file(ct(VOLUME[0], Modality="MUSTERMANN")), as_file(ct(VOLUME[0])))
    assert "1 x other" in message and "MUSTERMANN" not in message


def test_a_gap_says_what_was_expected_and_found():
    message = refusal(SeriesError, *series_folder("77654033/CT2"))
    assert "1.25 mm between slices expected, 202.5 mm found" in message


@pytest.mark.parametrize("missing", [1, 2])
def test_one_missing_slice_is_a_gap_wherever_it_was(missing):
    files = as_files(ct_series(VOLUME))
    del files[missing]
    assert "2.5 mm between slices expected, 5 mm found" in refusal(SeriesError, *files)


def test_two_slices_at_one_place():
    files = as_files(ct_series(VOLUME))
    assert "2 of 5 slices share their place" in refusal(SeriesError, *files, files[1])


def test_slices_off_a_straight_line():
    def wander(dataset, index):
        dataset.ImagePositionPatient = [3.0 * (index == 1), 0, 2.5 * index]

    assert "straight line" in refusal(SeriesError, *as_files(ct_series(VOLUME, change=wander)))


def test_pictures_do_not_form_a_volume():
    data = as_file(ct(VOLUME[0], ImagePositionPatient=None, ImageOrientationPatient=None))
    assert "one by one" in refusal(SeriesError, data, data)


@pytest.mark.parametrize(
    ("tags", "error"),
    [
        ({"Rows": 60000, "Columns": 60000}, LimitExceeded),
        ({"Rows": 65535, "Columns": 1}, UnreadableImage),
        ({"Rows": 4000, "Columns": 4000}, UnreadableImage),
        ({"Rows": 0}, UnreadableImage),
        ({"NumberOfFrames": 2000000000}, UnsupportedImage),
    ],
)
def test_forged_sizes_cost_nothing(tags, error):
    data = as_file(ct(VOLUME[0], **tags))
    tracemalloc.start()
    refusal(error, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 70e6  # the output array of 4000 x 4000 at most, no decoded pixels


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(pixels=34), "pixels a slice"),
        (Limits(voxels=139), "voxels"),
        (Limits(frames=3), "slices"),
        (Limits(files=3), "files"),
        (Limits(bytes=20000), "bytes"),
    ],
)
def test_limits(limits, words):
    files = as_files(ct_series(VOLUME))
    assert words in refusal(LimitExceeded, *files, limits=limits)


def compressed(stream: bytes, syntax: str) -> bytes:
    dataset = ct(VOLUME[0])
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return as_file(dataset)


JPEG_60000 = b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 60000, 60000) + b"\x01\x01\x11\0\xff\xd9"
J2K_60000 = b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">8I", 60000, 60000, 0, 0, 60000, 60000, 0, 0) + b"\0\x01\7\1\1"


@pytest.mark.parametrize(
    ("stream", "syntax"), [(JPEG_60000, JPEGBaseline8Bit), (J2K_60000, JPEG2000Lossless)], ids=["jpeg", "j2k"]
)
def test_a_forged_code_stream_is_not_decoded(stream, syntax):
    message = refusal(UnreadableImage, compressed(stream, syntax))
    assert "declares 7 x 5 pixels" in message and "compressed picture 60000 x 60000" in message


@pytest.mark.timeout(20)
def test_a_jp2_box_without_length_does_not_hang():
    stream = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0ftyp" + bytes(16)
    refusal(UnreadableImage, compressed(stream, JPEG2000Lossless))


def test_a_deflated_bomb_is_never_inflated():
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    buffer = BytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    buffer.write(packer.compress(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 1 << 28)))
    for _ in range(16):
        buffer.write(packer.compress(bytes(1 << 24)))
    buffer.write(packer.flush())
    data = buffer.getvalue()
    tracemalloc.start()
    assert "deflated" in refusal(UnsupportedImage, data)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


FUZZED = {
    name: sample(f"{name}.dcm").read_bytes()
    for name in (
        *("MR_small", "MR_small_RLE", "MR_small_jpeg_ls_lossless", "MR_small_implicit", "MR_small_jp2klossless"),
        "SC_rgb_small_odd_jpeg",
    )
}


def read_or_refuse(data: bytes) -> None:
    try:
        read_dicom([data])
    except MedaeError as error:
        assert str(error)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(FUZZED)), st.floats(0, 1))
def test_a_file_cut_anywhere_reads_or_is_refused(name, share):
    data = FUZZED[name]
    read_or_refuse(data[: int(share * len(data))])


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(FUZZED)),
    st.lists(st.tuples(st.integers(128, 2500), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_header_with_wrong_bytes_reads_or_is_refused(name, wrong):
    data = bytearray(FUZZED[name])
    for at, byte in wrong:
        data[at % len(data)] = byte
    read_or_refuse(bytes(data))


def test_every_file_of_pydicom_reads_or_is_refused():
    folder = sample("CT_small.dcm").parent
    outcomes = [outcome(path) for path in sorted(folder.rglob("*")) if path.is_file() and "TINY" not in path.parts]
    assert outcomes.count("image") > 60


def test_every_file_of_the_zoo_reads_or_is_refused(shared_data):
    outcomes = [outcome(path) for path in sorted((shared_data / "dicom_zoo").rglob("*")) if path.is_file()]
    assert outcomes.count("image") > 60


def outcome(path: Path) -> str:
    try:
        read_dicom([path])
    except MedaeError as error:
        return error.code
    return "image"


# -- privacy ----------------------------------------------------------------------------------------------------------

CANARY = "Mustermannova"


class Recorder(logging.Handler):
    """What a log file would hold; pytest's own caplog listens even where nothing is passed on."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def log():
    recorder = Recorder()
    root = logging.getLogger()
    level = root.level
    root.addHandler(recorder)
    root.setLevel(logging.DEBUG)
    yield recorder
    root.setLevel(level)
    root.removeHandler(recorder)


def canary_files() -> list[bytes]:
    """Values that are wrong for their tags: pydicom warns of each, and logs it."""
    files = []
    for name, vr in [("FrameOfReferenceUID", "UI"), ("PatientID", "LO"), ("PixelSpacing", "DS"), ("Rows", "UI")]:
        dataset = ct(VOLUME[0], PatientName=CANARY)
        dataset[name] = DataElement(name, vr, CANARY if vr != "DS" else "1", validation_mode=0)
        data = as_file(dataset)
        files += [data, data[: len(data) // 2], data[:-20]]
    return files


def test_no_patient_in_logs_warnings_or_messages(log, recwarn):
    refusals = []
    for file in canary_files():
        try:
            image = read_dicom([file])
            repr(image.geometry)
        except MedaeError as error:
            refusals.append(error)
    assert len(refusals) > 3
    assert not any(CANARY in str(error) or (not error.__suppress_context__ and error.__context__) for error in refusals)
    assert not any(CANARY in record.getMessage() or record.exc_info for record in log.records)
    assert not [record for record in log.records if record.name.startswith(("pydicom", "highdicom"))]
    assert not recwarn.list


def test_the_canary_would_have_been_heard(log):
    """The law above can fail: pydicom does tell the value, to whoever listens."""
    with pytest.warns(UserWarning, match=CANARY):
        _ = dcmread(BytesIO(canary_files()[0])).FrameOfReferenceUID


# -- folders ----------------------------------------------------------------------------------------------------------


def test_group_series_of_a_folder(tmp_path):
    folder = sample("CT_small.dcm").parent / "dicomdirtests"
    files = [path for name in ("98892001", "98892003", "77654033") for path in (folder / name).rglob("*")]
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken").write_bytes(as_file(ct(VOLUME[0], PixelSpacing=[0, 0])))
    others = [tmp_path / "notes.txt", tmp_path / "broken", sample("reportsi.dcm"), sample("image_dfl.dcm")]
    groups = group_series([path for path in [*files, *others] if path.is_file()])
    assert [group.paths for group in groups] == sorted(group.paths for group in groups)
    found = {(group.paths[0].parent.name, group.count, group.modality, group.is_localiser) for group in groups}
    assert {
        ("CT5N", 5, "CT", False),
        ("CT2", 4, "CT", False),
        ("CT2N", 1, "CT", True),
        ("CR1", 1, "CR", False),
    } <= found
    assert sum(group.count for group in groups if group.paths[0].parent.name == "MR700") == 7
    unreadable = {group.paths[0].name for group in groups if group.modality == "unreadable"}
    assert unreadable == {"broken", "image_dfl.dcm"}
    grouped = [path for group in groups for path in group.paths]
    assert len(grouped) == len(set(grouped)) and not {"notes.txt", "reportsi.dcm"} & {path.name for path in grouped}


def test_each_group_is_read_as_one_image(tmp_path):
    files = as_files(ct_series(VOLUME)) + as_files(ct_series(VOLUME, DIRECTIONS["coronal"]))
    groups = group_series(written(files, tmp_path))
    assert [group.count for group in groups] == [4, 4]
    assert [read_dicom(group.paths).geometry.axis_codes for group in groups] == ["SPL", "PIL"]


def test_pictures_of_one_series_are_groups_of_their_own(tmp_path):
    files = as_files([ct(VOLUME[at], ImagePositionPatient=None, SOPInstanceUID=f"1.2.{at + 1}") for at in range(3)])
    assert [group.count for group in group_series(written(files, tmp_path))] == [1, 1, 1]


def test_a_file_that_cannot_be_opened_is_left_to_the_caller(tmp_path):
    path = tmp_path / "gone.dcm"
    os.symlink(tmp_path / "nowhere", path)
    assert group_series([path]) == []
