"""Answers to DICOM files of several frames: a derived file of as many, and objects that refer to each frame."""

import shutil
import subprocess

import highdicom as hd
import numpy as np
import pytest
from pydicom.tag import Tag

from medae.errors import UnsupportedImage
from medae.io import DicomAnswers, encode_labels, encode_restored, read_image
from medae.io.answer import Findings, LabelSize
from medae.io.dicom_map import encode_parametric
from medae.io.dicom_overlay import encode_overlay
from medae.io.dicom_report import encode_report
from tests.dicom_made import (
    ALGORITHM,
    DIRECTIONS,
    LESION,
    ORGAN,
    as_file,
    ct,
    item_of_lut,
    opened,
    sample,
    segment,
    some_labels,
)
from tests.test_io_dicom_kinds import LPS_TO_RAS, VOLUME, enhanced


def derived(image, change=0.0):
    moved = image.with_pixels((image.pixels.astype(np.float64) + change).astype(np.float32))
    (file,) = encode_restored(moved, stem="scan", algorithm=ALGORITHM, description="denoised")
    assert file.name == "scan_restored.dcm"
    return read_image(file.data)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 4, 2]])
def test_a_derived_volume_is_the_same_volume_in_the_same_place(order):
    image = read_image(as_file(enhanced(VOLUME, order=order)))
    again = derived(image)
    np.testing.assert_allclose(again.pixels, image.pixels, rtol=1e-6)
    np.testing.assert_array_equal(again.geometry.affine, image.geometry.affine)
    assert again.source.frames == image.source.frames
    (before,), (after,) = image.source.datasets, again.source.datasets
    assert after.SOPInstanceUID != before.SOPInstanceUID and after.SOPClassUID == before.SOPClassUID
    assert after.SourceImageSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
    coarser = derived(image, change=3.0)  # each frame rounds by its own slope
    slopes = np.array([1.5 + at for at in range(6)])[:, None, None]
    assert (np.abs(coarser.pixels[0] - image.pixels[0] - 3) <= slopes / 2 + 1e-4).all()


def test_derived_frames_of_colour():
    image = read_image(sample("examples_ybr_color.dcm"))
    np.testing.assert_array_equal(derived(image).pixels, image.pixels)


def test_one_of_several_volumes_has_no_derived_file():
    image = read_image(as_file(enhanced(VOLUME, stacks=2)), series=1)
    with pytest.raises(UnsupportedImage, match="would lack the others"):
        derived(image)


FRAMES = {
    "in order": enhanced(VOLUME),
    "out of order": enhanced(VOLUME, order=[3, 0, 5, 1, 4, 2], directions=DIRECTIONS["axial, columns turned"]),
    "of two volumes": enhanced(VOLUME, stacks=2),
}


def of_frames(name):
    dataset = FRAMES[name]
    return dataset, read_image(as_file(dataset), series=2 if name == "of two volumes" else None)


def through_frames(seg, image, **other):
    """(S, R, W) labels found by the number of each slice's frame in the source."""
    seg = hd.seg.Segmentation.from_dataset(seg)
    (header,) = image.source.datasets
    frames = [frame + 1 for _, frame in image.source.slices]
    # where nothing is marked there may be no frame, and none refers to the source
    asked = {"combine_segments": True, "assert_missing_frames_are_empty": True, **other}
    return seg.get_pixels_by_source_frame(header.SOPInstanceUID, frames, **asked)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("dicom", [{}, {"empty_frames": True}, {"seg": "labelmap"}], ids=str)
def test_a_segmentation_refers_to_the_frames_it_was_made_for(name, dicom):
    dataset, image = of_frames(name)
    labels = some_labels(image)
    labels[0, 1] = 0
    seg = segment(labels, image, dicom=DicomAnswers(**dicom))
    np.testing.assert_array_equal(through_frames(seg, image), labels[0])
    (series,) = seg.ReferencedSeriesSequence
    (whole,) = series.ReferencedInstanceSequence
    assert (series.SeriesInstanceUID, whole.ReferencedSOPClassUID) == (dataset.SeriesInstanceUID, dataset.SOPClassUID)
    # a file of which all frames are meant is referred to as a whole
    assert whole.get("ReferencedFrameNumber") == ([4, 5, 6] if name == "of two volumes" else None)


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_marked_at_a_point_is_marked_there(name):
    """highdicom's own geometry of the SEG against the reader's of the source."""
    _, image = of_frames(name)
    labels = np.zeros((1, *image.geometry.shape), np.uint8)
    labels[0, 2, 4, 1] = 1
    volume = hd.seg.Segmentation.from_dataset(segment(labels, image, [LESION])).get_volume(combine_segments=True)
    (at,) = np.argwhere(volume.array == 1)
    np.testing.assert_allclose(LPS_TO_RAS @ volume.affine[:3] @ [*at, 1], image.geometry.world((2, 4, 1)), atol=1e-4)


def test_volumes_of_one_file_have_answers_of_their_own():
    data = as_file(FRAMES["of two volumes"])
    first, second = (read_image(data, series=number) for number in (1, 2))
    empty = np.zeros((1, *first.geometry.shape), np.uint8)
    assert segment(empty, first).SOPInstanceUID != segment(empty, second).SOPInstanceUID


@pytest.mark.parametrize("dicom", [{}, {"seg": "labelmap"}], ids=str)
def test_frames_without_a_place_are_told_apart_by_their_numbers(dicom):
    image = read_image(sample("examples_ybr_color.dcm"))
    labels = np.zeros((1, *image.geometry.shape), np.uint8)
    labels[0, 2:9, 10:20, 5:50], labels[0, 7, :3, :4] = 1, 2
    seg = segment(labels, image, dicom=DicomAnswers(**dicom))
    np.testing.assert_array_equal(through_frames(seg, image), labels[0])
    # nothing of the places that were made up for highdicom is left
    said = seg.to_json()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "3D"):
        assert f'"{name}"' not in said and (name == "3D" or f"{Tag(name):08X}" not in said)
    told = [frame.FrameContentSequence[0].FrameLabel for frame in seg.PerFrameFunctionalGroupsSequence]
    assert list(dict.fromkeys(told)) == [f"frame {number}" for number in range(3, 10)]
    assert seg.DimensionIndexSequence[-1].DimensionIndexPointer == Tag("FrameLabel")


def test_a_parametric_map_of_frames_lies_where_they_lie():
    _, image = of_frames("out of order")
    scores = np.random.default_rng(0).random((1, *image.geometry.shape), np.float32)
    (file,) = encode_parametric(image.with_pixels(scores), stem="scan", maximum=1.0, algorithm=ALGORITHM)
    found = hd.pm.ParametricMap.from_dataset(opened(file))
    frames = [frame + 1 for _, frame in image.source.slices]
    header = image.source.datasets[0]
    again = found.get_pixels_by_source_frame(header.SOPInstanceUID, frames, apply_real_world_transform=False)
    np.testing.assert_array_equal(again, scores[0])


def test_overlays_refer_each_to_its_frame_and_lie_on_it():
    dataset, image = of_frames("out of order")
    pictures = np.zeros((*image.geometry.shape, 3), np.uint8)
    made = [opened(file) for file in encode_overlay(image, pictures, stem="scan", algorithm=ALGORITHM, description="x")]
    assert len({one.SOPInstanceUID for one in made}) == 6
    for number, one in enumerate(made):
        (source,) = one.SourceImageSequence
        frame = source.ReferencedFrameNumber - 1
        place = dataset.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]
        assert one.ImagePositionPatient == place.ImagePositionPatient
        assert source.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
        np.testing.assert_allclose(
            LPS_TO_RAS @ np.array(one.ImagePositionPatient, float), image.geometry.world((number, 0, 0)), atol=1e-4
        )


def test_a_report_names_the_file_and_the_segment():
    dataset, image = of_frames("of two volumes")
    labels = some_labels(image)
    made = encode_labels(image.with_pixels(labels), stem="scan", labels_info=[LESION, ORGAN], algorithm=ALGORITHM)
    sizes = (LabelSize(LESION, 1, 7, mm3=2.5), LabelSize(ORGAN, 2, 0))
    report = encode_report(image, Findings(sizes), stem="scan", algorithm=ALGORITHM, answers=made)
    named = [uids[2] for uids in hd.sr.Comprehensive3DSR.from_dataset(opened(report)).get_evidence()]
    assert set(named) == {dataset.SOPInstanceUID, opened(made[0]).SOPInstanceUID} and len(named) == 2


def test_a_modality_table_has_no_way_back():
    pixels = np.arange(35, dtype=np.uint16).reshape(7, 5)
    dataset = ct(pixels, ModalityLUTSequence=[item_of_lut()], RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(UnsupportedImage, match="modality table"):
        derived(read_image(as_file(dataset)))


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
def test_a_derived_enhanced_image_has_no_errors_of_its_own(shared_data, tmp_path):
    path = shared_data / "dicom_zoo" / "dcm_qa_enh" / "Siemens" / "XA10" / "6_1.dcm"
    (file,) = encode_restored(read_image(path), stem="scan", algorithm=ALGORITHM, description="denoised")
    (tmp_path / "scan.dcm").write_bytes(file.data)

    def errors(checked):
        done = subprocess.run(["dciodvfy", checked], capture_output=True, text=True, check=False)
        return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}

    assert errors(tmp_path / "scan.dcm") <= errors(path)
