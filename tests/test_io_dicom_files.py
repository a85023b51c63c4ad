"""DICOM files: recognised, grouped into series, and silent about the patient."""

import logging
import os
import struct
import zipfile
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from medae.errors import (
    LimitExceeded,
    MedaeError,
    SeriesError,
    UnreadableImage,
    UnsupportedImage,
)
from medae.io import read_image
from medae.io.dicom import group_series, is_dicom, read_dicom
from tests.dicom_made import DIRECTIONS, as_file, as_files, ct, ct_series, sample, written

VOLUME = np.random.default_rng(0).permutation(4 * 7 * 5).reshape(4, 7, 5).astype(np.int16)


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
    others = [tmp_path / "notes.txt", tmp_path / "broken", sample("reportsi.dcm"), sample("liver_1frame.dcm")]
    groups = group_series([path for path in [*files, *others] if path.is_file()])
    assert [group.paths for group in groups] == sorted(group.paths for group in groups)
    found = {(group.paths[0].parent.name, group.count, group.modality, group.is_localiser) for group in groups}
    assert {
        ("CT5N", 5, "CT", False),
        ("CT2", 4, "CT", False),
        ("CR1", 1, "CR", False),
    } <= found
    assert not any(group.is_localiser for group in groups)  # CT2N has one, in a study with scans
    assert sum(group.count for group in groups if group.paths[0].parent.name == "MR700") == 7
    unreadable = {group.paths[0].name for group in groups if group.modality == "unreadable"}
    assert unreadable == {"broken", "liver_1frame.dcm"}
    grouped = [path for group in groups for path in group.paths]
    assert len(grouped) == len(set(grouped)) and not {"notes.txt", "reportsi.dcm"} & {path.name for path in grouped}


def test_each_group_is_read_as_one_image(tmp_path):
    files = as_files(ct_series(VOLUME)) + as_files(ct_series(VOLUME, DIRECTIONS["coronal"]))
    groups = group_series(written(files, tmp_path))
    assert [group.count for group in groups] == [4, 4]
    assert [read_dicom(group.paths).geometry.axis_codes for group in groups] == ["SPL", "PIL"]


def test_a_localiser_is_left_out_beside_scans_of_its_study_only(tmp_path):
    overview = ct(VOLUME[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.9")
    files = [*as_files(ct_series(VOLUME)), as_file(overview)]
    assert [group.count for group in group_series(written(files, tmp_path))] == [4]
    overview.StudyInstanceUID = "1.2.10"
    groups = group_series(written([*files[:-1], as_file(overview)], tmp_path))
    assert [(group.count, group.is_localiser) for group in groups] == [(4, False), (1, True)]


def test_pictures_of_one_series_are_groups_of_their_own(tmp_path):
    files = as_files([ct(VOLUME[at], ImagePositionPatient=None, SOPInstanceUID=f"1.2.{at + 1}") for at in range(3)])
    assert [group.count for group in group_series(written(files, tmp_path))] == [1, 1, 1]


def test_a_file_that_cannot_be_opened_is_left_to_the_caller(tmp_path):
    path = tmp_path / "gone.dcm"
    os.symlink(tmp_path / "nowhere", path)
    assert group_series([path]) == []


# -- tables of files ---------------------------------------------------------------------------------------------------


def medium(folder, names):
    """A DICOMDIR in `folder` that names files, each a list of parts."""
    records = []
    for parts in names:
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", parts
        records.append(record)
    directory = Dataset()
    directory.DirectoryRecordSequence = records
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID, directory.file_meta.TransferSyntaxUID = "1.2", "1.2.840.10008.1.2.1"
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def test_a_dicomdir_stands_for_the_files_that_it_names(tmp_path):
    (tmp_path / "IMG").mkdir()
    paths = written(as_files(ct_series(VOLUME)), tmp_path / "IMG")
    (tmp_path / "other.dcm").write_bytes(as_file(ct(VOLUME[0], SeriesInstanceUID="1.2.9")))
    directory = medium(tmp_path, [["IMG", path.name] for path in reversed(paths)])
    np.testing.assert_array_equal(read_image(directory).pixels, read_dicom(paths).pixels)
    directory = medium(tmp_path, [["IMG", path.name] for path in paths] + [["other.dcm"]])
    with pytest.raises(SeriesError, match=r"\[1\] 4 x CT 7x5 axial; \[2\] 1 x CT"):
        read_image(directory)
    assert read_image(directory, series=2).geometry.shape == (1, 7, 5)


@pytest.mark.parametrize(
    "parts",
    [["..", "out.dcm"], ["/etc", "passwd"], ["IMG", "..", "..", "out.dcm"], ["..\\out.dcm"], ["link", "out.dcm"]],
)
def test_a_dicomdir_leads_nowhere_else(tmp_path, parts):
    inside = tmp_path / "medium"
    (inside / "IMG").mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "out.dcm").write_bytes(as_file(ct(VOLUME[0])))
    with pytest.raises((UnsupportedImage, UnreadableImage)):
        read_image(medium(inside, [parts]))


def test_a_dicomdir_without_its_files(tmp_path):
    with pytest.raises(SeriesError, match="1 of 1 files that the DICOMDIR names are not there"):
        read_image(medium(tmp_path, [["IMG", "1"]]))
    with pytest.raises(SeriesError, match="names no image"):
        read_image(medium(tmp_path, []))


def zipped(*files, method=zipfile.ZIP_DEFLATED):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as table:
        for name, data in files:
            table.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_stands_for_its_files(tmp_path):
    files = as_files(ct_series(VOLUME))
    named = [(f"scan/{at}.dcm", data) for at, data in enumerate(files)]
    data = zipped(*named, ("scan/.DS_Store", b"x"), ("__MACOSX/scan/0.dcm", b"x"))
    np.testing.assert_array_equal(read_image(data).pixels, read_dicom(files).pixels)
    (tmp_path / "scan").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "scan").pixels, read_dicom(files).pixels)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (zipped(("../x.dcm", b"x")), UnsupportedImage),
        (zipped(("a.zip", zipped(("b.dcm", b"x")))), UnsupportedImage),
        (zipped(("zeros.nii", bytes(200 << 20))), LimitExceeded),
        (zipped(("note.txt", b"hello")), UnsupportedImage),
        (zipped((".DS_Store", b"x")), SeriesError),
    ],
)
def test_zips_that_are_refused(data, error):
    with pytest.raises(error):
        read_image(data)


def test_a_zip_without_room_to_unpack_it(monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medae.io.archive.unpack", full)
    with pytest.raises(UnreadableImage, match="make space there"):
        read_image(zipped(("a.dcm", b"x")))
