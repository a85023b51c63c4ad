"""Orthanc takes our DICOM answers, finds them, and gives back what it was given (STOW, QIDO, WADO of PS3.18)."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset

from medae.io.dicom import read_dicom
from tests.dicom_classes import angiography, ultrasound
from tests.dicom_made import as_file
from tests.peers.orthanc import Pacs, running
from tests.peers.test_dciodvfy import FILES, SOURCES, answers

pytestmark = pytest.mark.peers

NAMES = ("CT5N", "CR1", "MR_small", "SC_rgb_small_odd", "examples_palette")


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    # a Unix socket's path has at most 107 bytes
    with running(tmp_path_factory.mktemp("o")) as made:
        yield made


def opened(data: bytes) -> FileDataset:
    return dcmread(BytesIO(data))


def assert_kept(pacs: Pacs, data: bytes) -> None:
    """Found by its UIDs, and equal: every element, the pixels as they are packed, the transfer syntax."""
    sent = opened(data)
    (found,) = pacs.qido("instances", SOPInstanceUID=sent.SOPInstanceUID)
    assert found["00080016"]["Value"] == [sent.SOPClassUID]
    (series,) = pacs.qido("series", SeriesInstanceUID=sent.SeriesInstanceUID)
    assert series["0020000D"]["Value"] == [sent.StudyInstanceUID]
    assert series["00080060"]["Value"] == [sent.Modality]
    returned = opened(pacs.wado(sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID))
    assert returned.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert returned == sent


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_stored_found_and_returned(pacs: Pacs, name: str) -> None:
    made = answers(read_dicom(SOURCES[name]))
    assert pacs.stow([path.read_bytes() for path in SOURCES[name]]).status_code == 200
    for kind, files in made.items():
        # the same instance in another transfer syntax is the same instance: an archive keeps the first
        if ", " in kind:
            continue
        assert pacs.stow([file.data for file in files]).status_code == 200, kind
        for file in files:
            assert_kept(pacs, file.data)
    (study,) = pacs.qido("studies", StudyInstanceUID=opened(SOURCES[name][0].read_bytes()).StudyInstanceUID)
    modalities = set(study["00080061"]["Value"])
    assert {"SEG", "SR", "OT"} <= modalities


@pytest.mark.parametrize("made", [angiography, ultrasound], ids=lambda made: made.__name__)
def test_answers_to_several_frames_too(pacs: Pacs, made: Callable[[], list[FileDataset]]) -> None:
    (source,) = made()
    assert pacs.stow([as_file(source)]).status_code == 200
    for kind, files in answers(read_dicom([as_file(source)])).items():
        for file in files if ", " not in kind else ():
            assert pacs.stow([file.data]).status_code == 200, kind
            assert_kept(pacs, file.data)


@pytest.mark.parametrize("method", ["jpeg-ls", "jpeg-2000", "rle"])
def test_compressed_answers_too(method: str, tmp_path: Path) -> None:
    """In an archive of their own: the names are those of the uncompressed ones."""
    made = answers(read_dicom(SOURCES["CT5N"]))
    with running(tmp_path) as pacs:
        for kind in (f"derived, {method}", f"overlay, {method}"):
            assert pacs.stow([file.data for file in made[kind]]).status_code == 200
            for file in made[kind]:
                assert_kept(pacs, file.data)


def test_what_is_no_dicom_is_not_stored(pacs: Pacs) -> None:
    """The laws above can fail: Orthanc says what it does not take, and what it has not."""
    assert pacs.stow([b"no DICOM"]).status_code != 200
    never_sent = dcmread(FILES / "693_J2KI.dcm")
    assert pacs.qido("instances", SOPInstanceUID=never_sent.SOPInstanceUID) == []
