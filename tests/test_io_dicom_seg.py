"""DICOM SEG of labels, maps and probabilities: on the slices of their source, and holding what they were given."""

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset

from medae.image import Image
from medae.io.answer import Label
from medae.io.dicom import read_dicom
from medae.io.dicom_seg import encode_map, encode_probabilities
from tests.dicom_made import (
    ALGORITHM,
    DIRECTIONS,
    LESION,
    ORGAN,
    as_file,
    as_files,
    ct,
    ct_series,
    opened,
    restore,
    sample,
    segment,
    some_labels,
)

VOLUME = np.random.default_rng(0).integers(-1000, 2000, (5, 9, 7)).astype(np.int16)


def read_back(seg: Dataset, image: Image) -> np.ndarray:
    """(S, R, W) label numbers, or (S, R, W, segments) fractions, found through the references to the source."""
    seg = hd.seg.Segmentation.from_dataset(seg)
    return seg.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in image.source.datasets],
        combine_segments=seg.SegmentationType != "FRACTIONAL",
        assert_missing_frames_are_empty=True,
    )


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("count", [1, 2, 300])
def test_labels_come_back_on_the_slices_they_were_made_for(directions, count):
    image = read_dicom(as_files(ct_series(VOLUME, directions))[::-1])
    infos = [Label(name=f"label {n}", colour=(n % 256, 0, 255)) for n in range(1, count + 1)]
    labels = some_labels(image, count)
    seg = segment(labels, image, infos)
    np.testing.assert_array_equal(read_back(seg, image), labels[0])
    assert seg.SegmentationType == "BINARY" and len(seg.SegmentSequence) == count


def test_frames_lie_in_space_where_their_slices_lie():
    image = read_dicom(as_files(ct_series(VOLUME, DIRECTIONS["oblique"])))
    labels = np.zeros((1, *image.geometry.shape), np.uint8)
    labels[0, 3, 2, 4] = 1
    seg = segment(labels, image)
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) * [-1, -1, 1]
    np.testing.assert_allclose(position, image.geometry.world([3, 0, 0]), atol=1e-4)
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.7, 1.1]
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(2.5)
    reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == image.source.datasets[3].SOPInstanceUID
    assert seg.FrameOfReferenceUID == image.geometry.frame_of_reference
    assert seg.StudyInstanceUID == image.source.datasets[0].StudyInstanceUID


def test_what_a_segment_says():
    image = read_dicom([as_file(ct(VOLUME[0]))])
    seg = segment(some_labels(image), image)
    lesion, organ = seg.SegmentSequence
    assert (lesion.SegmentLabel, lesion.SegmentAlgorithmType) == ("Lesion", "AUTOMATIC")
    assert lesion.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert organ.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    algorithm = lesion.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("demo-denoiser", "1.2.0")
    red = hd.color.CIELabColor.from_dicom_value(list(lesion.RecommendedDisplayCIELabValue)).to_rgb()
    np.testing.assert_allclose(red, (255, 0, 0), atol=3)
    assert lesion.TrackingUID != organ.TrackingUID and seg.DeviceSerialNumber == "0123456789abcdef" * 4
    assert seg.SeriesDate == seg.ContentDate == "20260304"


def test_an_empty_mask():
    image = read_dicom(as_files(ct_series(VOLUME)))
    labels = np.zeros((1, *image.geometry.shape), np.uint8)
    np.testing.assert_array_equal(read_back(segment(labels, image), image), labels[0])


def test_probabilities_are_kept_to_a_255th():
    image = read_dicom(as_files(ct_series(VOLUME))[::-1])
    values = np.random.default_rng(1).random((2, *image.geometry.shape)).astype(np.float32)
    values[:, 0] = [[[0.0]], [[1.0]]]
    (file,) = encode_probabilities(
        image.with_pixels(values), stem="x", labels_info=[LESION, ORGAN], algorithm=ALGORITHM
    )
    assert file.name == "x_probabilities.dcm"
    seg = opened(file)
    assert (seg.SegmentationType, seg.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    back = np.moveaxis(read_back(seg, image), -1, 0)
    np.testing.assert_allclose(back, values, atol=0.5 / 255 + 1e-6)


def test_a_map_is_scaled_by_its_fixed_maximum():
    image = read_dicom(as_files(ct_series(VOLUME)))
    values = np.linspace(0, 5, VOLUME.size, dtype=np.float32).reshape(1, *VOLUME.shape)
    (file,) = encode_map(image.with_pixels(values), stem="x", maximum=4.0, algorithm=ALGORITHM)
    assert file.name == "x_map.dcm"
    seg = opened(file)
    np.testing.assert_allclose(read_back(seg, image)[..., 0], np.minimum(values[0] / 4, 1), atol=0.5 / 255 + 1e-6)
    assert "4" in seg.SegmentSequence[0].SegmentDescription


def test_an_empty_map():
    image = read_dicom(as_files(ct_series(VOLUME)))
    (file,) = encode_map(
        image.with_pixels(np.zeros((1, *VOLUME.shape), np.float32)), stem="x", maximum=1, algorithm=ALGORITHM
    )
    assert not read_back(opened(file), image).any()


OFTEN_MISSING = (
    *(
        "AccessionNumber",
        "StudyID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "PatientName",
        "PatientID",
    ),
    *("SliceThickness", "PositionReferenceIndicator", "ReferringPhysicianName", "FrameOfReferenceUID", "SeriesNumber"),
    *("Manufacturer", "Modality", "InstanceNumber", "ImageType", "SpacingBetweenSlices", "PatientOrientation"),
)


@pytest.mark.parametrize("name", OFTEN_MISSING)
def test_headers_that_miss_something_get_their_answers(name):
    def forget(dataset, index):
        if name in dataset:
            del dataset[name]

    image = read_dicom(as_files(ct_series(VOLUME, change=forget)))
    labels = some_labels(image)
    np.testing.assert_array_equal(read_back(segment(labels, image), image), labels[0])
    assert len(restore(image)) == 5


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientBirthDate": "01/02/1960"},
        {"StudyTime": "14:04:38"},
        {"PatientSex": "W"},
        {"SpecificCharacterSet": ""},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
        {"SliceThickness": ""},
        {"SliceThickness": 0},
        {"PatientAge": "45"},
        {"AccessionNumber": "X" * 30},
        {"PatientName": "ONLY-ONE-PART"},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # from making such a file
def test_headers_with_malformed_values_get_their_answers(tags):
    image = read_dicom([as_file(ct(VOLUME[0], **tags))])
    labels = some_labels(image)
    np.testing.assert_array_equal(read_back(segment(labels, image), image), labels[0])
    assert len(restore(image)) == 1


@pytest.mark.parametrize("name", ["chrH31.dcm", "chrKoreanMulti.dcm", "chrGreek.dcm", "chrX1.dcm"])
def test_names_in_any_script_survive(name):
    with_name = dcmread(get_charset_files(name)[0])
    tags = {"SpecificCharacterSet": with_name.SpecificCharacterSet, "PatientName": with_name.PatientName}
    image = read_dicom([as_file(ct(VOLUME[0], **tags))])
    for answer in (segment(some_labels(image), image), *restore(image)):
        assert str(answer.PatientName) == str(with_name.PatientName)


def test_the_source_is_never_touched():
    def forget(dataset, index):
        del dataset.StudyID, dataset.SliceThickness, dataset.FrameOfReferenceUID

    image = read_dicom(as_files(ct_series(VOLUME, change=forget)))
    before = [header.to_json() for header in image.source.datasets]
    restore(image)
    segment(some_labels(image), image)
    assert [header.to_json() for header in image.source.datasets] == before


@pytest.mark.parametrize(
    "name", ["dicomdirtests/77654033/CR1/6154", "SC_rgb_jpeg_dcmd.dcm", "SC_rgb_small_odd.dcm", "examples_palette.dcm"]
)
def test_a_picture_without_position_gets_a_seg_that_refers_to_it(name):
    image = read_dicom([sample("CT_small.dcm").parent / name])
    labels = some_labels(image)
    seg = segment(labels, image)
    np.testing.assert_array_equal(read_back(seg, image), labels[0])
    assert "FrameOfReferenceUID" not in seg and "PatientOrientation" in seg


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": None},
        {"ImagePositionPatient": None, "ImageOrientationPatient": None},
        {"ImagePositionPatient": None, "FrameOfReferenceUID": None, "SliceThickness": None},
    ],
)
def test_a_slice_that_does_not_say_where_it_lies_is_a_picture_too(tags):
    image = read_dicom([as_file(ct(VOLUME[0], **tags))])
    labels = some_labels(image)
    np.testing.assert_array_equal(read_back(segment(labels, image), image), labels[0])


def test_a_sheared_series_gets_its_seg():
    def shift(dataset, index):
        dataset.ImagePositionPatient = [0.0, 0.9 * index, 2.5 * index]

    image = read_dicom(as_files(ct_series(VOLUME, change=shift)))
    labels = some_labels(image)
    seg = segment(labels, image)
    np.testing.assert_array_equal(read_back(seg, image), labels[0])
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(2.5)
