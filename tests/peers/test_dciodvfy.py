"""dicom3tools and dcmtk judge our DICOM answers: no error that the source did not have."""

import shutil
import subprocess
from collections.abc import Collection
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile, CodedTerm, Findings, Label, LabelSize, write_files
from medae.io.dicom import encode_restored, read_dicom
from medae.io.dicom_compress import compressed
from medae.io.dicom_deidentify import deidentified
from medae.io.dicom_map import encode_parametric
from medae.io.dicom_options import DicomAnswers
from medae.io.dicom_overlay import encode_overlay
from medae.io.dicom_report import encode_report
from medae.io.dicom_seg import encode_labels, encode_map, encode_probabilities
from medae.pseudonyms import Pseudonyms
from tests.conftest import SHARED_DATA
from tests.dicom_classes import angiography, nuclear, positron, ultrasound
from tests.dicom_made import as_file, sample, series_folder, written

pytestmark = pytest.mark.peers

ALGORITHM = Algorithm("demo", "1.0.0", "sha256:" + "0123456789abcdef" * 4)
LABELS = [
    Label(
        name="Lesion",
        colour=(255, 0, 0),
        category=CodedTerm(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"),
        term=CodedTerm(value="108369006", scheme="SCT", meaning="Neoplasm"),
    ),
    Label(name="Organ", colour=(0, 128, 255)),
]
FILES = sample("CT_small.dcm").parent
SOURCES = {
    **{name: [FILES / f"{name}.dcm"] for name in ("CT_small", "MR_small", "MR_small_bigendian", "MR_small_implicit")},
    **{name: [FILES / f"{name}.dcm"] for name in ("SC_rgb_rle_16bit", "SC_rgb_jpeg_dcmtk", "SC_rgb_small_odd")},
    **{name: [FILES / f"{name}.dcm"] for name in ("examples_palette", "examples_overlay", "693_J2KI")},
    "CT5N": series_folder("98892001/CT5N"),
    "CR1": series_folder("77654033/CR1"),
    **{f"MR700/{path.name}": [path] for path in series_folder("98892003/MR700")},
}
if SHARED_DATA.is_dir():  # more of the same where it is there; a skipped test would be taken for a missing peer
    SHARED = SHARED_DATA / "dicom_series"
    for name in ("udacity_hippocrop_mr/Study1/13_HCropVolume", "udacity_study3_t1_mr"):
        SOURCES[name] = sorted((SHARED / name).glob("*.dcm"))


def run(program: str, *arguments: Path) -> str:
    assert shutil.which(program), f"{program} is missing: install the packages dicom3tools and dcmtk"
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=120
    )
    return done.stdout + done.stderr


def errors(path: Path) -> set[str]:
    return {line for line in run("dciodvfy", path).splitlines() if line.startswith(("Error", "Abort"))}


def answers(image: Image) -> dict[str, list[AnswerFile]]:
    labels = np.zeros((1, *image.geometry.shape), np.uint8)
    labels[:, :, 1:7, 1:5], labels[:, 0, :2, :2] = 1, 2
    fractions = np.random.default_rng(0).random((2, *image.geometry.shape)).astype(np.float32)
    who = {"stem": "scan", "algorithm": ALGORITHM}
    segs = {"labels_info": LABELS, **who}
    found = image.with_pixels(labels)
    findings = Findings(
        (LabelSize(LABELS[0], 1, 24, mm3=7.5), LabelSize(LABELS[1], 2, 0)),
        {"l2_mean": 0.0123},
        99.5,
        0.005,
        "anomalous",
    )
    rgb = np.zeros((*image.geometry.shape, 3), np.uint8)
    made = {
        "derived": encode_restored(image, description="denoised", **who),
        "labels": encode_labels(found, **segs),
        "all frames": encode_labels(found, dicom=DicomAnswers(empty_frames=True), **segs),
        "label map": encode_labels(found, dicom=DicomAnswers(seg="labelmap"), **segs),
        "empty": encode_labels(image.with_pixels(labels * 0), labels_info=LABELS[:1], **who),
        "map": encode_map(image.with_pixels(fractions[:1]), maximum=0.5, **who),
        "probabilities": encode_probabilities(image.with_pixels(fractions), **segs),
        "overlay": encode_overlay(image, rgb, description="anomaly overlay", **who),
    }
    made["report"] = [encode_report(image, findings, answers=made["labels"], **who)]
    if image.geometry.frame_of_reference:  # it lies in space
        made["parametric"] = encode_parametric(image.with_pixels(fractions[:1]), maximum=0.5, **who)
    for method in ("jpeg-ls", "jpeg-2000", "rle"):
        made[f"derived, {method}"] = compressed(made["derived"], method)
        made[f"overlay, {method}"] = compressed(made["overlay"], method)
    return made


UNKNOWN_CLASS = {
    "Error - Information Object Not found",
    "Error - SegmentNumber not monotonically increasing from one by one - "
    "have SegmentSequence item number 1 (from one) with SegmentNumber of 0",
}
"""What dciodvfy of 2022 says of Label Map Segmentation, a class of 2024, in which 0 is the background (C.8.20.4)."""


def assert_no_new_errors(
    sources: list[Path], folder: Path, *, allowed: Collection[str] = (), pseudonyms: Pseudonyms | None = None
) -> None:
    known = set().union(*map(errors, sources), allowed)
    for kind, files in answers(read_dicom(sources)).items():
        files = files if pseudonyms is None else deidentified(files, pseudonyms)
        paths = write_files(files, folder / kind)
        new = set().union(*map(errors, paths)) - known
        new -= UNKNOWN_CLASS if kind == "label map" else set()
        assert not new, f"{kind}: {new}"
        for path in paths[:3]:
            assert "SOPInstanceUID" in run("dcmdump", path) and not run("dcmdump", "-q", path).startswith(("E:", "F:"))
        if kind == "derived" and pseudonyms is None:
            assert_one_consistent_series(sources, paths)


def assert_one_consistent_series(sources: list[Path], paths: list[Path]) -> None:
    """dcentvfy: patient, study, series and frame of reference agree, of the answers as of the sources."""

    def complaints(files: list[Path]) -> set[str]:
        lines = run("dcentvfy", *files).splitlines()
        return {line.split(" - ", 1)[-1] for line in lines if line.startswith("Error")}

    known = complaints(sources)
    assert complaints(paths) <= known
    # a derived series stands in the study of its source: the two together are as consistent as the source alone
    assert complaints([*sources, *paths]) <= known


@pytest.mark.parametrize("name", SOURCES)
def test_no_error_that_the_source_did_not_have(name, tmp_path):
    assert_no_new_errors(SOURCES[name], tmp_path)


@pytest.mark.parametrize("name", ["CT5N", "CR1", "SC_rgb_small_odd"])
def test_no_error_without_the_patient_either(name, tmp_path):
    assert_no_new_errors(SOURCES[name], tmp_path, pseudonyms=Pseudonyms(b"k" * 32))


@pytest.mark.parametrize("made", [angiography, nuclear, positron, ultrasound], ids=lambda made: made.__name__)
@pytest.mark.parametrize("patient", [True, False], ids=["as it is", "de-identified"])
def test_no_error_in_answers_to_sound_objects(made, patient, tmp_path):
    sources = written([as_file(dataset) for dataset in made()], tmp_path)
    assert not set().union(*map(errors, sources))
    assert_no_new_errors(sources, tmp_path, pseudonyms=None if patient else Pseudonyms(b"k" * 32))


SEVERAL_FRAMES = {
    "ultrasound": ("dicom_zoo/pydicom_data/OBXXXX1A_rle_2frame.dcm", ""),
    "enhanced MR": ("dicom_zoo/dcm_qa_enh/Siemens/XA10/6_1.dcm", ""),
    "enhanced MR without places": ("dicom_zoo/pydicom_data/emri_small_jpeg_ls_lossless.dcm", ""),
    "legacy converted enhanced CT": ("dicom_zoo/dcmqi/segmentations/24x38x3/multiframe/mf.dcm", ""),
    "of a class that has one frame": (
        "dicom_zoo/pydicom_data/SC_rgb_expb_2frame.dcm",
        # which is the source's own mistake; without the number nothing would tell its frames apart
        "Error - Shall not be present for Referenced SOP Class that is not multi-frame - "
        "attribute <ReferencedFrameNumber>",
    ),
}


@pytest.mark.parametrize("name", SEVERAL_FRAMES)
def test_no_error_that_a_source_of_several_frames_did_not_have(name, shared_data, tmp_path):
    path, allowed = SEVERAL_FRAMES[name]
    assert_no_new_errors([shared_data / path], tmp_path, allowed=[allowed])


def test_the_judges_find_errors(tmp_path):
    """The laws above can fail: an answer that is spoilt is called wrong."""
    made = answers(read_dicom(SOURCES["CT5N"]))
    seg = dcmread(BytesIO(made["labels"][0].data))
    del seg.SegmentSequence
    seg.save_as(tmp_path / "broken.dcm")
    assert any("SegmentSequence" in line for line in errors(tmp_path / "broken.dcm"))
    paths = write_files(made["derived"], tmp_path)
    stranger = dcmread(paths[0])
    stranger.PatientName = "Someone^Else"
    stranger.save_as(paths[0])
    with pytest.raises(AssertionError):
        assert_one_consistent_series(SOURCES["CT5N"], paths)
