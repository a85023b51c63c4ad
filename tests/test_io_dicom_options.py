"""The words about DICOM answers: the same at every door, and none that is not understood is passed over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medae.answers import answer_files, check_dicom
from medae.batch.manifest import list_items
from medae.batch.predict import predict_items
from medae.client import Client
from medae.errors import UsageError
from medae.io import read_image
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers, series_named
from medae.predictor import Predictor
from tests.dicom_made import as_files, ct_series, opened, written
from tests.service_parts import client_of, denoiser, scorer, segmenter
from tests.test_client import listening

ALL = st.builds(
    DicomAnswers,
    seg=st.sampled_from(["binary", "labelmap"]),
    empty_frames=st.booleans(),
    map=st.permutations(["seg", "parametric", "overlay"]).flatmap(
        lambda forms: st.integers(1, 3).map(lambda n: tuple(forms[:n]))
    ),
    compress=st.sampled_from(["none", "jpeg-ls", "jpeg-2000", "rle"]),
    report=st.booleans(),
)


@given(ALL)
def test_words_are_read_back(dicom: DicomAnswers) -> None:
    assert DicomAnswers.from_texts(dicom.texts()) == dicom
    assert DicomAnswers.from_words(f"{name}={text}" for name, text in dicom.texts().items()) == dicom


def test_a_name_alone_is_true() -> None:
    assert DicomAnswers.from_words(["report", "seg=labelmap"]) == DicomAnswers(report=True, seg="labelmap")
    assert DicomAnswers.from_words([]).texts() == {}


@pytest.mark.parametrize(
    "words",
    (
        *(["seg=Mustermann"], ["seg"], ["report=1"], ["report="], ["map="], ["map=seg,seg"], ["map=seg;overlay"]),
        *(["Mustermann=1"], ["report", "report=false"], ["compress=jpeg"], ["empty_frames=True"], ["=true"]),
    ),
)
def test_other_words_are_refused_and_not_repeated(words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        DicomAnswers.from_words(words)
    assert "Mustermann" not in str(refused.value)


def test_words_need_a_model_that_they_are_about() -> None:
    for package in (denoiser("d"), scorer("s")):
        with pytest.raises(UsageError, match="labels"):
            check_dicom(DicomAnswers(seg="labelmap"), package)
    for package in (denoiser("d"), segmenter("g")):
        with pytest.raises(UsageError, match="maps"):
            check_dicom(DicomAnswers(map=("overlay",)), package)
    check_dicom(DEFAULT_DICOM, denoiser("d"))


@pytest.fixture
def series(tmp_path):
    volume = np.random.default_rng(0).integers(0, 1000, (3, 24, 20)).astype(np.int16)
    folder = tmp_path / "scan"
    folder.mkdir()
    return written(as_files(ct_series(volume)), folder)


WORDS = {
    "segment": DicomAnswers(seg="labelmap", compress="rle", report=True),
    "restore": DicomAnswers(compress="jpeg-ls", report=True),
    "score": DicomAnswers(map=("parametric", "overlay"), compress="jpeg-2000", report=True),
}


def unstamped(data: bytes) -> str:
    """A DICOM file as text, without what says when it was written."""
    dataset = opened_bytes(data)
    for element in list(dataset.iterall()):
        if element.keyword.endswith(("Date", "Time", "DateTime")):
            element.value = None
    return dataset.to_json()


def opened_bytes(data: bytes):
    from medae.io.answer import AnswerFile

    return opened(AnswerFile("a.dcm", "application/dicom", data))


@pytest.mark.parametrize("task", WORDS)
def test_every_door_gives_the_same_files(task, series, tmp_path):
    package = {"segment": segmenter, "restore": denoiser, "score": scorer}[task](f"a-{task}")
    dicom = WORDS[task]
    image = read_image(series)
    made = answer_files(Predictor(package)(image), package, stem="image", original=image, dicom=dicom)
    wanted = {file.name.partition("_")[2]: unstamped(file.data) for file in made if file.name.endswith(".dcm")}
    assert len(wanted) > 1

    out = tmp_path / "out"
    predict_items(Predictor(package), list_items([str(series[0].parent)]).items, out, dicom=dicom)
    answers = {path.relative_to(out).as_posix(): path for path in out.rglob("*.dcm")}
    assert {name.partition("_")[2]: unstamped(path.read_bytes()) for name, path in answers.items()} == wanted

    with listening(client_of(package).app) as address, Client(address, retries=0) as client:
        answer = getattr(client, task)(series, dicom=dicom)
        found = {file.name.partition("_")[2]: unstamped(file.data) for file in answer.files}
        assert {name: text for name, text in found.items()} == wanted
        with pytest.raises(UsageError):
            client.segment(series, dicom=DicomAnswers(map=("overlay",)))


def test_a_series_is_named_by_a_number_or_a_uid():
    assert series_named("12") == 12 and series_named("123456789") == 123456789
    assert series_named("1.2.840.1") == "1.2.840.1"
    for text in ("0", "-1", "1234567890", "9" * 5000, "1.5e3", "first", "", "1.2." + "3" * 64, "\u0663"):
        with pytest.raises(UsageError, match="its number"):
            series_named(text)
