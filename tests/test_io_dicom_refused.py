"""DICOM that cannot be an image: one clear error each, at no cost; and no file crashes the reader."""

import copy
import struct
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from medae.errors import (
    GeometryError,
    LimitExceeded,
    MedaeError,
    SeriesError,
    UnreadableImage,
    UnsupportedImage,
)
from medae.io.dicom import read_dicom
from medae.io.dicom_file import NoPicture, read_header
from medae.io.guard import Limits
from tests.dicom_made import as_file, as_files, ct, ct_series, sample, series_folder

VOLUME = np.random.default_rng(0).permutation(4 * 7 * 5).reshape(4, 7, 5).astype(np.int16)


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
        ("badVR.dcm", "radiotherapy dose"),  # with a number of frames that is no number
    ],
)
def test_other_objects(name, words):
    assert words in refusal(UnsupportedImage, sample("CT_small.dcm").parent / name)


def test_a_header_without_pixels():
    assert "no pixel data" in refusal(UnreadableImage, as_file(ct(VOLUME[0], PixelData=None)))


@pytest.mark.parametrize("name", ["Rows", "Columns"])
def test_no_size(name):
    refusal(UnsupportedImage, as_file(ct(VOLUME[0], **{name: None})))


def test_a_damaged_modality_table():
    dataset = ct(VOLUME[0], ModalityLUTSequence=[Dataset()])
    assert "modality table" in refusal(UnreadableImage, as_file(dataset))


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
    assert "what came is not one series but 4" in message
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

    assert "not one series but 2: [1] 3 x CT 7x5 axial" in refusal(
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
        ({"NumberOfFrames": 2000000000}, LimitExceeded),
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


def deflated(dataset: Dataset, *, zeros: int = 0) -> bytes:
    """A file of the deflated transfer syntax, with MiB of zeros behind its data set."""
    plain = copy.deepcopy(dataset)
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer, meta = BytesIO(), FileMetaDataset(plain.file_meta)
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = False, True
    write_dataset(body, Dataset({tag: plain[tag] for tag in plain.keys()}))  # noqa: SIM118  # not the meta
    buffer.write(packer.compress(body.getvalue()))
    for _ in range(zeros):
        buffer.write(packer.compress(bytes(1 << 20)))
    buffer.write(packer.flush())
    return buffer.getvalue()


def test_a_deflated_file_is_read_as_if_it_were_not():
    dataset = ct(VOLUME[0], PixelPaddingValue=3)
    np.testing.assert_array_equal(read_dicom([deflated(dataset)]).pixels, read_dicom([as_file(dataset)]).pixels)
    image = read_dicom([deflated(dataset)])
    assert str(image.source.datasets[0].file_meta.TransferSyntaxUID) == ExplicitVRLittleEndian
    (origin,) = image.source.origins
    assert read_header(deflated(dataset), origin[1]) == image.source.datasets[0]


@pytest.mark.parametrize(
    ("tags", "error"),
    [
        ({}, UnreadableImage),  # elements of no length without end
        ({"Rows": None}, NoPicture),
        ({"Rows": 16384, "Columns": 16384}, LimitExceeded),
        ({"Rows": 8000, "Columns": 8000}, LimitExceeded),
        ({"Rows": 4000, "Columns": 4000}, UnreadableImage),
        ({"ImageComments": "x" * (20 << 20)}, NoPicture),
    ],
)
def test_a_deflated_bomb_costs_nothing(tags, error):
    data = deflated(ct(VOLUME[0], **tags) if tags else ct(VOLUME[0], PixelData=None), zeros=1 << 8)
    tracemalloc.start()
    start = time.process_time()
    refusal(error, data)
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


@pytest.mark.parametrize(("cut", "error"), [(200, NoPicture), (400, UnreadableImage), (-1, UnreadableImage)])
def test_a_deflated_file_cut_short(cut, error):
    refusal(error, deflated(ct(np.arange(4000, dtype=np.int16).reshape(40, 100)))[:cut])


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
