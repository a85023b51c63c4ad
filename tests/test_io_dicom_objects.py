"""DICOM answers on request: label maps, parametric maps, overlays, reports, compression; read back by others."""

from dataclasses import dataclass
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from medae.errors import UnsupportedImage
from medae.image import Image
from medae.io.answer import AnswerFile, Findings, Label, LabelSize
from medae.io.dicom import encode_restored, read_dicom
from medae.io.dicom_compress import compressed
from medae.io.dicom_map import encode_parametric
from medae.io.dicom_options import DicomAnswers
from medae.io.dicom_overlay import display_window, encode_overlay
from medae.io.dicom_report import encode_report
from medae.io.dicom_seg import encode_labels, encode_probabilities
from tests.dicom_made import (
    ALGORITHM,
    DIRECTIONS,
    LESION,
    NOW,
    ORGAN,
    as_file,
    as_files,
    ct,
    ct_series,
    opened,
    sample,
    segment,
    series_folder,
    some_labels,
)
from tests.test_io_dicom_seg import read_back

VOLUME = np.random.default_rng(0).integers(-1000, 2000, (5, 9, 7)).astype(np.int16)
WHO = {"stem": "scan", "algorithm": ALGORITHM, "now": NOW}
SYNTAXES = {"jpeg-ls": JPEGLSLossless, "jpeg-2000": JPEG2000Lossless, "rle": RLELossless}


@pytest.fixture
def image() -> Image:
    return read_dicom(as_files(ct_series(VOLUME, DIRECTIONS["oblique"]))[::-1])


# -- segmentations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "empty"), [(1, False), (2, True), (300, False)])
def test_a_label_map_holds_the_labels(image, count, empty):
    infos = [Label(name=f"label {n}", colour=(n % 256, 0, 255)) for n in range(1, count + 1)]
    labels = some_labels(image, count)
    labels[0, 2] = 0
    seg = segment(labels, image, infos, dicom=DicomAnswers(seg="labelmap", empty_frames=empty))
    assert seg.SegmentationType == "LABELMAP" and seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert seg.NumberOfFrames == (5 if empty else 4)
    np.testing.assert_array_equal(read_back(seg, image), labels[0])


def test_a_label_map_says_what_its_labels_are(image):
    seg = segment(some_labels(image), image, dicom=DicomAnswers(seg="labelmap"))
    lesion = next(item for item in seg.SegmentSequence if item.SegmentNumber == 1)
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    red = hd.color.CIELabColor.from_dicom_value(list(lesion.RecommendedDisplayCIELabValue)).to_rgb()
    np.testing.assert_allclose(red, (255, 0, 0), atol=3)


@pytest.mark.parametrize("soft", [False, True])
def test_empty_frames_are_kept_on_request(image, soft):
    labels = some_labels(image)
    labels[0, :3] = 0

    def made(dicom: DicomAnswers) -> Dataset:
        if not soft:
            return segment(labels, image, dicom=dicom)
        fractions = np.concatenate([labels == 1, labels == 2]).astype(np.float32)
        (file,) = encode_probabilities(image.with_pixels(fractions), labels_info=[LESION, ORGAN], dicom=dicom, **WHO)
        return opened(file)

    full, short = made(DicomAnswers(empty_frames=True)), made(DicomAnswers())
    assert (full.NumberOfFrames, short.NumberOfFrames) == (10, 4)
    np.testing.assert_array_equal(read_back(full, image), read_back(short, image))


def test_other_objects_have_other_names(image):
    labels = some_labels(image)
    ways = [DicomAnswers(), DicomAnswers(seg="labelmap"), DicomAnswers(empty_frames=True)]
    ways.append(DicomAnswers(seg="labelmap", empty_frames=True))
    made = [segment(labels, image, dicom=dicom) for dicom in ways]
    assert len({one.SOPInstanceUID for one in made} | {one.SeriesInstanceUID for one in made}) == 8
    # how pixels are packed changes nothing of what is said
    (file,) = encode_labels(image.with_pixels(labels), labels_info=[LESION, ORGAN], dicom=ways[1], **WHO)
    assert opened(compressed([file], "rle")[0]).SOPInstanceUID == made[1].SOPInstanceUID


# -- compression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SYNTAXES)
@pytest.mark.parametrize("name", ["CT_small", "MR_small", "SC_rgb_small_odd", "SC_rgb_rle_16bit", "693_J2KI"])
def test_compression_keeps_every_pixel(name, method):
    image = read_dicom([sample(f"{name}.dcm")])
    plain = encode_restored(image, description="denoised", **WHO)
    (file,) = compressed(plain, method)
    answer, before = opened(file), opened(plain[0])
    assert answer.file_meta.TransferSyntaxUID == SYNTAXES[method]
    np.testing.assert_array_equal(answer.pixel_array, before.pixel_array)
    np.testing.assert_array_equal(read_dicom([file.data]).pixels, image.pixels)
    for dataset in (answer, before):
        del dataset.PixelData, dataset.PhotometricInterpretation  # JPEG 2000 has its own word for RGB
    assert answer == before  # LossyImageCompression of a lossy source included


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    method=st.sampled_from(list(SYNTAXES)),
    seed=st.integers(0, 99),
)
def test_any_depth_and_size_survives_compression(bits, signed, shape, method, seed):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    stored = np.random.default_rng(seed).integers(low, high + 1, shape).astype("i2" if signed else "u2")
    source = ct(stored, BitsStored=bits, HighBit=bits - 1, PixelPaddingValue=None)
    files = encode_restored(read_dicom([as_file(source)]), description="denoised", **WHO)
    np.testing.assert_array_equal(opened(compressed(files, method)[0]).pixel_array, stored)


@pytest.mark.parametrize("method", SYNTAXES)
def test_what_cannot_be_compressed_stays_as_it_is(image, method):
    labels = some_labels(image)
    binary = encode_labels(image.with_pixels(labels), labels_info=[LESION, ORGAN], **WHO)
    floats = encode_parametric(image.with_pixels(labels / np.float32(3)), maximum=1, **WHO)
    report = encode_report(image, Findings(scores={"l2_mean": 0.5}), **WHO)
    for file in (*binary, *floats, report):
        assert compressed([file], method) == [file]
    several = encode_labels(
        image.with_pixels(labels), labels_info=[LESION, ORGAN], dicom=DicomAnswers(seg="labelmap"), **WHO
    )
    packed = opened(compressed(several, method)[0])
    assert packed.file_meta.TransferSyntaxUID == SYNTAXES[method]
    np.testing.assert_array_equal(read_back(packed, image), labels[0])


# -- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_parametric_map_holds_the_scores_where_they_lie(directions):
    image = read_dicom(as_files(ct_series(VOLUME, directions)))
    scores = np.random.default_rng(1).normal(size=(1, *VOLUME.shape)).astype(np.float32)
    (file,) = encode_parametric(image.with_pixels(scores), maximum=0.02, **WHO)
    assert file.name == "scan_parametric.dcm"
    made = hd.pm.ParametricMap.from_dataset(opened(file))
    volume = made.get_volume(apply_real_world_transform=True)
    back = np.diag([-1.0, -1.0, 1, 1]) @ volume.affine  # LPS to RAS
    for at in ((0, 0, 0), (4, 8, 6), (2, 3, 5)):
        index = np.linalg.solve(back, [*image.geometry.world(at), 1])[:3]
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        assert volume.array[tuple(np.rint(index).astype(int))] == scores[(0, *at)]
    mapping = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert made.RecognizableVisualFeatures == "YES"


def test_a_picture_has_no_parametric_map():
    picture = read_dicom([series_folder("77654033/CR1")[0]])
    with pytest.raises(UnsupportedImage, match="map=overlay"):
        encode_parametric(picture.with_pixels(picture.pixels), maximum=1, **WHO)


def test_an_overlay_lies_on_its_slices(image):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3)).astype(np.uint8)
    files = encode_overlay(image, rgb, description="anomaly overlay", **WHO)
    assert [file.name for file in files] == [f"scan_overlay/000{n}.dcm" for n in range(1, 6)]
    again = read_dicom([file.data for file in files[::-1]])
    np.testing.assert_array_equal(np.moveaxis(again.pixels, 0, -1), rgb)
    np.testing.assert_allclose(again.geometry.affine, image.geometry.affine, atol=1e-6)
    for file, source in zip(files, image.source.datasets, strict=True):
        made = opened(file)
        assert made.StudyInstanceUID == source.StudyInstanceUID and made.PatientID == source.PatientID
        assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_the_window_of_the_source_is_used():
    tags = {"WindowCenter": [40, 500], "WindowWidth": [400, 2000]}
    assert display_window(read_dicom([as_file(ct(VOLUME[0], **tags))])) == (-160, 240)
    inverse = ct(VOLUME[0], **tags, PhotometricInterpretation="MONOCHROME1")
    assert display_window(read_dicom([as_file(inverse)])) == (240, -160)
    for nothing in ({"WindowCenter": ""}, {"WindowWidth": 0}, {"WindowWidth": ""}):
        assert display_window(read_dicom([as_file(ct(VOLUME[0], **tags | nothing))])) is None


# -- reports ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    verdict: str = "review"
    percentile: float | None = 98.5
    reasons: tuple[str, ...] = ("spacing beyond what was trained on", "noise")


FINDINGS = Findings(
    labels=(LabelSize(LESION, 1, 12, mm3=23.1), LabelSize(ORGAN, 2, 0, mm3=0.0)),
    scores={"l2_mean": 0.0123456789},
    percentile=99.5,
    p_value=0.0049751,
    decision="anomalous",
    gate=Gate(),
)


def texts(report: Dataset) -> dict[str, list[object]]:
    """What each item says, by the meaning of its name."""
    found: dict[str, list[object]] = {}

    def walk(items: list[Dataset]) -> None:
        for item in items:
            value: object = None
            if item.ValueType == "NUM":
                measured = item.MeasuredValueSequence[0]
                value = (float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue)
            elif item.ValueType == "CODE":
                value = item.ConceptCodeSequence[0].CodeValue
            elif item.ValueType == "TEXT":
                value = item.TextValue
            elif item.ValueType == "IMAGE":
                value = item.ReferencedSOPSequence[0]
            found.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(value)
            walk(item.get("ContentSequence", []))

    walk(report.ContentSequence)
    return found


def test_a_report_says_the_findings(image):
    labels = np.zeros((1, *VOLUME.shape), np.uint8)
    labels[0, 1, :3, :4] = 1
    answers = encode_labels(image.with_pixels(labels), labels_info=[LESION, ORGAN], **WHO)
    seg = opened(answers[0])
    report = opened(encode_report(image, FINDINGS, answers=answers, **WHO))
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    said = texts(report)
    assert said["Volume"] == [(23.1, "mm3"), (0.0231, "mL"), (0, "mm3"), (0, "mL")]
    assert said["Number of voxels"] == [(12, "1"), (0, "1")]
    assert said["Finding"] == ["108369006", "85756007"]
    assert said["Score l2_mean"] == [(pytest.approx(0.0123456789), "1")]
    assert said["Percentile among the model's reference images"] == [(99.5, "%"), (98.5, "%")]
    assert said["P-Value"] == [(pytest.approx(0.0049751), "1")]
    assert said["Decision at the caller's false-positive rate"] == ["263654008"]
    assert said["Whether the model knows images like this one"] == ["gate-review"]
    assert said["Reason of the verdict"] == list(Gate().reasons)
    # only what was found has a segment to point to
    (segment_item,) = said["Referenced Segment"]
    assert segment_item.ReferencedSOPInstanceUID == seg.SOPInstanceUID and segment_item.ReferencedSegmentNumber == 1
    assert said["Tracking Unique Identifier"] is not None
    evidence = {
        one.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert evidence == {seg.SOPInstanceUID, *(header.SOPInstanceUID for header in image.source.datasets)}


def test_a_report_is_read_by_highdicom(image):
    report = hd.sr.srread(BytesIO(encode_report(image, FINDINGS, **WHO).data))
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == 4  # two labels, the image, the gate


def test_reports_of_other_findings_have_other_names(image):
    other = Findings(scores={"l2_mean": 0.5})
    made = [opened(encode_report(image, one, **WHO)) for one in (FINDINGS, FINDINGS, other)]
    assert made[0].SOPInstanceUID == made[1].SOPInstanceUID != made[2].SOPInstanceUID
    assert encode_report(image, other, **WHO) == encode_report(image, other, **WHO)


@pytest.mark.parametrize("verdict", ["ok", "review", "reject"])
def test_a_verdict_without_numbers(image, verdict):
    report = opened(encode_report(image, Findings(gate=Gate(verdict, None, ())), **WHO))
    assert texts(report)["Whether the model knows images like this one"] == [f"gate-{verdict}"]


@pytest.mark.parametrize("name", ["dicomdirtests/77654033/CR1/6154", "SC_rgb_small_odd.dcm", "examples_palette.dcm"])
def test_pictures_have_reports_and_overlays_too(name):
    picture = read_dicom([sample("CT_small.dcm").parent / name])
    sizes = Findings((LabelSize(LESION, 1, 12, mm2=3.5),))
    assert texts(opened(encode_report(picture, sizes, **WHO)))["Area"] == [(3.5, "mm2")]
    rgb = np.zeros((1, *picture.geometry.shape[1:], 3), np.uint8)
    (file,) = encode_overlay(picture, rgb, description="overlay", **WHO)
    assert file.name == "scan_overlay.dcm" and not dcmread(BytesIO(file.data)).pixel_array.any()


def test_files_that_are_no_dicom_are_left_alone():
    summary = AnswerFile("scan_summary.json", "application/json", b"{}")
    assert compressed([summary], "rle") == [summary]
