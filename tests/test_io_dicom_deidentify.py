"""De-identified answers: nothing of the patient, names under a key, and objects that still belong together."""

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medae.errors import UnsupportedImage, UsageError
from medae.image import Image
from medae.io.answer import AnswerFile, Findings, LabelSize
from medae.io.dicom import encode_restored, read_dicom
from medae.io.dicom_deidentify import deidentified
from medae.io.dicom_map import encode_parametric
from medae.io.dicom_options import DicomAnswers
from medae.io.dicom_overlay import encode_overlay
from medae.io.dicom_profile import ACTIONS
from medae.io.dicom_report import encode_report
from medae.io.dicom_seg import encode_labels
from medae.pseudonyms import Pseudonyms
from tests.dicom_made import ALGORITHM, LESION, NOW, ORGAN, as_file, as_files, ct, ct_series, opened, some_labels

KEY = Pseudonyms(b"the secret of one site")
CANARY = "CANARYDOE"
VOLUME = np.random.default_rng(0).integers(-1000, 2000, (3, 9, 7)).astype(np.int16)
WHO = {"stem": "scan", "algorithm": ALGORITHM, "now": NOW}


def mark(dataset: Dataset, index: int = 0) -> None:
    """A patient's data wherever a header has room for them."""
    for name in (
        *("PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "PatientAddress", "AccessionNumber"),
        *("StudyID", "StudyDescription", "SeriesDescription", "InstitutionName", "InstitutionAddress", "StationName"),
        *("ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName", "ProtocolName", "ImageComments"),
        *("DeviceSerialNumber", "RequestedProcedureDescription", "AdditionalPatientHistory", "MedicalAlerts"),
    ):
        setattr(dataset, name, CANARY)
    dataset.PatientBirthDate, dataset.StudyDate, dataset.AcquisitionDate = "19600102", "20240506", "20240506"
    nested = Dataset()
    nested.RequestedProcedureID, nested.ScheduledProcedureStepDescription = CANARY, CANARY
    dataset.RequestAttributesSequence = Sequence([nested])
    machine = Dataset()
    machine.Manufacturer, machine.InstitutionName, machine.OperatorsName = "scanner", CANARY, CANARY
    dataset.ContributingEquipmentSequence = Sequence([machine])


@pytest.fixture
def image() -> Image:
    return read_dicom(as_files(ct_series(VOLUME, change=mark)))


def every_answer(image: Image) -> dict[str, list[AnswerFile]]:
    labels = some_labels(image)
    drawn, soft = image.with_pixels(labels), image.with_pixels(labels / np.float32(3))
    seg = encode_labels(drawn, labels_info=[LESION, ORGAN], **WHO)
    findings = Findings((LabelSize(LESION, 1, 5, mm3=2.0), LabelSize(ORGAN, 2, 7)), {"l2_mean": 0.5})
    rgb = np.zeros((*image.geometry.shape, 3), np.uint8)
    return {
        "derived": encode_restored(image, description="denoised", **WHO),
        "seg": seg,
        "label map": encode_labels(drawn, labels_info=[LESION, ORGAN], dicom=DicomAnswers(seg="labelmap"), **WHO),
        "parametric": encode_parametric(soft, maximum=1, **WHO),
        "overlay": encode_overlay(image, rgb, description="overlay", **WHO),
        "report": [encode_report(image, findings, answers=seg, **WHO)],
    }


KINDS = ("derived", "seg", "label map", "parametric", "overlay", "report")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_patient_is_left(image, kind):
    files = every_answer(image)[kind]
    dates = (b"19600102", b"20240506", b"20260304")
    assert all(CANARY.encode() in file.data for file in files)  # it was there
    for file in deidentified(files, KEY):
        assert CANARY.encode() not in file.data
        assert not [date for date in dates if date in file.data]
        for header in image.source.datasets:
            for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
                assert str(header[name].value).encode() + b"\0" not in file.data.replace(b" ", b"\0"), name
        answer = opened(file)
        assert answer.PatientIdentityRemoved == "YES" and answer.PatientName == ""
        assert answer.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert answer.file_meta.MediaStorageSOPInstanceUID == answer.SOPInstanceUID
        assert answer.LongitudinalTemporalInformationModified == "REMOVED"


@pytest.mark.parametrize("kind", KINDS)
def test_every_attribute_of_the_profile_is_handled(image, kind):
    """By the standard's table, at any depth: what must go is gone, what must change has changed."""
    for before, after in zip(every_answer(image)[kind], deidentified(every_answer(image)[kind], KEY), strict=True):
        old = {(element.tag, str(element.value)) for element in opened(before).iterall() if not element.is_empty}
        for element in opened(after).iterall():
            action = ACTIONS.get(int(element.tag), "")
            if element.keyword in ("ContentSequence", "SourceImageSequence", "ReferencedImageSequence"):
                continue  # cleaned within
            assert action != "X", element.keyword
            if action in ("Z", "X/Z"):
                assert element.is_empty, element.keyword
            elif action and not element.is_empty:
                assert (element.tag, str(element.value)) not in old, element.keyword


def uids(dataset: Dataset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for element in dataset.iterall():
        if element.VR == "UI" and element.value:
            found.setdefault(element.keyword, set()).add(str(element.value))
    return found


def test_what_belongs_together_still_does(image):
    made = {kind: [opened(file) for file in deidentified(files, KEY)] for kind, files in every_answer(image).items()}
    for name in ("StudyInstanceUID", "PatientID"):
        assert len({one[name].value for files in made.values() for one in files}) == 1
    assert len({one.SOPInstanceUID for files in made.values() for one in files}) == 3 + 1 + 1 + 1 + 3 + 1
    seg, report = made["seg"][0], made["report"][0]
    assert seg.SOPInstanceUID in uids(report)["ReferencedSOPInstanceUID"]
    sources = (
        uids(made["derived"][0])["ReferencedSOPInstanceUID"] | uids(made["derived"][1])["ReferencedSOPInstanceUID"]
    )
    assert sources <= uids(seg)["ReferencedSOPInstanceUID"]
    assert seg.FrameOfReferenceUID == made["derived"][0].FrameOfReferenceUID
    tracked = {item.TrackingUID for item in seg.SegmentSequence}
    assert tracked <= uids(report)["UID"]


def test_pixels_and_place_stay(image):
    files = deidentified(encode_restored(image, description="d", **WHO), KEY)
    again = read_dicom([file.data for file in files])
    np.testing.assert_array_equal(again.pixels, image.pixels)
    np.testing.assert_array_equal(again.geometry.affine, image.geometry.affine)


def test_the_key_decides_the_names(image):
    files = encode_restored(image, description="d", **WHO)
    one, same, other = (deidentified(files, key) for key in (KEY, KEY, Pseudonyms(b"another secret, of a site")))
    assert one == same
    for name in ("SOPInstanceUID", "StudyInstanceUID", "PatientID"):
        assert opened(one[0])[name].value != opened(other[0])[name].value != opened(files[0])[name].value
    assert opened(one[0]).SOPInstanceUID.is_valid and opened(one[0]).SOPInstanceUID.startswith("2.25.")


def test_burned_in_text_is_refused():
    image = read_dicom([as_file(ct(VOLUME[0], BurnedInAnnotation="YES"))])
    with pytest.raises(UnsupportedImage, match="burned"):
        deidentified(encode_restored(image, description="d", **WHO), KEY)


def test_what_was_done_before_stays_said():
    source = ct(VOLUME[0], PatientIdentityRemoved="YES", DeidentificationMethod="by hand")
    (file,) = deidentified(encode_restored(read_dicom([as_file(source)]), description="d", **WHO), KEY)
    method = dcmread(BytesIO(file.data)).DeidentificationMethod
    assert method[0] == "by hand" and "PS3.15" in method[1]


def test_other_files_are_left_alone():
    summary = AnswerFile("scan_summary.json", "application/json", b"{}")
    assert deidentified([summary], KEY) == [summary]


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 5000])
def test_a_key_of_another_length_is_refused(key, tmp_path):
    (tmp_path / "key").write_bytes(key + b"\n")
    with pytest.raises(UsageError, match="key"):
        Pseudonyms.from_file(tmp_path / "key")
    with pytest.raises(UsageError, match="cannot be read"):
        Pseudonyms.from_file(tmp_path / "none")


def test_white_space_around_a_key_does_not_matter(tmp_path):
    (tmp_path / "key").write_bytes(b"the secret of one site\n")
    assert Pseudonyms.from_file(tmp_path / "key").name("Doe") == KEY.name("Doe") != KEY.name("Roe")
    assert KEY.uid("1.2.3") != KEY.uid("1.2.4") and "Doe" not in KEY.name("Doe")
