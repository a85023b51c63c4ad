"""DICOM answers: derived series and SEG that lie where their source lies, name it, and hold what they were given."""

import logging
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from medae.errors import OutputError, UnsupportedImage
from medae.image import Image
from medae.io.answer import Algorithm
from medae.io.dicom import encode_restored, read_dicom
from medae.io.dicom_seg import encode_labels, encode_map, encode_probabilities
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
    restore,
    sample,
    segment,
    series_folder,
    some_labels,
)

VOLUME = np.random.default_rng(0).integers(-1000, 2000, (5, 9, 7)).astype(np.int16)


# -- derived series: pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    (
        *("CT_small", "MR_small", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "693_J2KI"),
        *("SC_rgb_rle", "SC_rgb_rle_16bit", "SC_rgb_small_odd", "SC_ybr_full_422_uncompressed", "examples_palette"),
    ),
)
def test_what_was_read_is_written_back_unchanged(name):
    image = read_dicom([sample(f"{name}.dcm")])
    (file,) = encode_restored(image, stem="x", algorithm=ALGORITHM, description="denoised")
    assert file.name == "x_restored.dcm"
    again = read_dicom([file.data])
    np.testing.assert_array_equal(again.pixels, image.pixels)
    np.testing.assert_array_equal(again.geometry.affine, image.geometry.affine)
    assert again.geometry.unit == image.geometry.unit
    assert opened(file).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    slope=st.sampled_from([1, 0.5, 2, -1, 0.684, 3.4567e-3, 1.2e4]),
    intercept=st.sampled_from([0, -1024, 200, 0.125]),
    seed=st.integers(0, 1000),
)
def test_stored_values_survive_any_rescale_and_depth(bits, signed, slope, intercept, seed):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    stored = np.random.default_rng(seed).integers(low, high + 1, (3, 5)).astype("i2" if signed else "u2")
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": slope, "RescaleIntercept": intercept}
    (answer,) = restore(read_dicom([as_file(ct(stored, **tags, PixelPaddingValue=None))]))
    np.testing.assert_array_equal(answer.pixel_array, stored)
    for name, value in tags.items():
        assert float(answer[name].value) == pytest.approx(value)


def test_values_are_rounded_and_clipped_to_the_stored_type():
    stored = np.array([[0, 100], [4095, 7]], np.uint16)
    image = read_dicom([as_file(ct(stored, BitsStored=12, HighBit=11, RescaleIntercept=-1024, PixelPaddingValue=None))])
    changed = image.with_pixels(np.array([[[[-2000.0, -923.4], [-923.6, 1e6]]]], np.float32))
    np.testing.assert_array_equal(restore(changed)[0].pixel_array, [[0, 101], [100, 4095]])


def test_padding_stays_padding_whatever_the_model_said():
    stored = np.array([[-2000, 5], [-2000, 7]], np.int16)
    image = read_dicom([as_file(ct(stored))])
    (answer,) = restore(image.with_pixels(image.pixels * 0 + 50))
    np.testing.assert_array_equal(answer.pixel_array, [[-2000, 50 + 1024], [-2000, 50 + 1024]])
    assert answer.PixelPaddingValue == -2000


def test_each_instance_keeps_its_own_rescale():
    def differ(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + index, -7 * index

    image = read_dicom(as_files(ct_series(VOLUME, change=differ))[::-1])
    answers = restore(image)
    for index, answer in enumerate(answers):
        assert (answer.RescaleSlope, answer.RescaleIntercept) == (1 + index, -7 * index)
        np.testing.assert_array_equal(answer.pixel_array, VOLUME[index])


def test_monochrome1_keeps_its_meaning():
    image = read_dicom([series_folder("77654033/CR1")[0]])
    (answer,) = restore(image)
    assert answer.PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_array_equal(answer.pixel_array, dcmread(series_folder("77654033/CR1")[0]).pixel_array)


def test_an_odd_number_of_bytes_is_padded():
    (answer,) = restore(read_dicom([sample("SC_rgb_small_odd.dcm")]))
    assert len(answer.PixelData) == 28 and answer.PhotometricInterpretation == "RGB"


def test_a_palette_image_becomes_rgb_without_its_tables():
    (answer,) = restore(read_dicom([sample("examples_palette.dcm")]))
    assert (answer.PhotometricInterpretation, answer.SamplesPerPixel, answer.BitsStored) == ("RGB", 3, 8)
    assert not [element for element in answer if "Palette" in element.keyword]


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
def test_the_answer_lies_where_the_source_lies(directions):
    image = read_dicom(as_files(ct_series(VOLUME, directions))[::-1])
    files = encode_restored(image, stem="knee", algorithm=ALGORITHM, description="denoised")
    assert [file.name for file in files] == [f"knee_restored/000{n}.dcm" for n in range(1, 6)]
    again = read_dicom([file.data for file in files[::-1]])
    np.testing.assert_array_equal(again.geometry.affine, image.geometry.affine)
    np.testing.assert_array_equal(again.pixels, image.pixels)


# -- derived series: header -------------------------------------------------------------------------------------------


def test_the_header_of_a_derived_series():
    sources = ct_series(VOLUME)
    image = read_dicom(as_files(sources))
    answers = restore(image)
    for source, answer in zip(sources, answers, strict=True):
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "SOPClassUID", "Modality"):
            assert answer[name].value == source[name].value
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            assert answer[name].value == source[name].value
        assert answer.InstanceNumber == source.InstanceNumber
        assert answer.SOPInstanceUID != source.SOPInstanceUID and answer.SOPInstanceUID.is_valid
        assert answer.file_meta.MediaStorageSOPInstanceUID == answer.SOPInstanceUID
        assert list(answer.ImageType) == ["DERIVED", *source.ImageType[1:]]
        (reference,) = answer.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert ALGORITHM.digest in answer.DerivationDescription and "denoised" in answer.DerivationDescription
        equipment = answer.ContributingEquipmentSequence[-1]
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert equipment.ManufacturerModelName == "demo-denoiser" and "1.2.0" in equipment.SoftwareVersions
        assert (answer.SeriesDate, answer.ContentDate, answer.InstanceCreationDate) == ("20260304",) * 3
        assert answer.ContentTime == "050607.000890"
        assert answer.StudyDate == source.StudyDate and answer.AcquisitionDate == source.AcquisitionDate
    assert len({answer.SeriesInstanceUID for answer in answers}) == 1 != {sources[0].SeriesInstanceUID}
    assert len({answer.SOPInstanceUID for answer in answers}) == 5
    assert answers[0].SeriesNumber != sources[0].SeriesNumber and "denoised (AI)" in answers[0].SeriesDescription


def test_what_described_the_old_pixels_is_gone():
    dataset = ct(VOLUME[0])
    dataset.add_new("SmallestImagePixelValue", "SS", 3)
    dataset.add_new(0x60003000, "OW", b"\1\2")
    dataset.add_new(0x00091001, "LO", "private")
    nested = Dataset()
    nested.add_new(0x00091002, "LO", "private, too")
    nested.ReferencedSOPInstanceUID = "1.2.3"
    dataset.ReferencedImageSequence = Sequence([nested])
    dataset.IconImageSequence = Sequence([Dataset()])
    dataset.DigitalSignaturesSequence = Sequence([Dataset()])
    (answer,) = restore(read_dicom([as_file(dataset)]))
    assert answer.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.3"
    everything = [element for element in answer.iterall()]
    assert not [element for element in everything if element.tag.is_private]
    assert not [element for element in answer if element.tag.group == 0x6000]
    for name in ("SmallestImagePixelValue", "IconImageSequence", "DigitalSignaturesSequence", "DataSetTrailingPadding"):
        assert name not in answer


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"]),
        ("ORIGINAL", ["DERIVED", "SECONDARY"]),
        (None, ["DERIVED", "SECONDARY"]),
    ],
)
def test_image_type(kinds, expected):
    (answer,) = restore(read_dicom([as_file(ct(VOLUME[0], ImageType=kinds))]))
    assert list(answer.ImageType) == expected


def test_once_lossy_always_lossy():
    declared = ct(VOLUME[0], LossyImageCompression="01", LossyImageCompressionRatio=12)
    (answer,) = restore(read_dicom([as_file(declared)]))
    assert (answer.LossyImageCompression, answer.LossyImageCompressionRatio) == ("01", 12)
    image = read_dicom([sample("SC_rgb_jpeg_dcmtk.dcm")])  # by its transfer syntax
    assert image.source.datasets[0].file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    assert restore(image)[0].LossyImageCompression == "01"
    assert segment(some_labels(image), image).LossyImageCompression == "01"
    assert "LossyImageCompression" not in restore(read_dicom([as_file(ct(VOLUME[0]))]))[0]


# -- names ------------------------------------------------------------------------------------------------------------


def uids(answer: Dataset) -> set[str]:
    return {answer.SOPInstanceUID, answer.SeriesInstanceUID}


def test_the_same_answer_has_the_same_name_and_bytes():
    image = read_dicom(as_files(ct_series(VOLUME)))
    labels = some_labels(image)
    ways = [
        lambda now: encode_restored(image, stem="x", algorithm=ALGORITHM, description="d", now=now),
        lambda now: encode_labels(
            image.with_pixels(labels), stem="x", labels_info=[LESION, ORGAN], algorithm=ALGORITHM, now=now
        ),
        lambda now: encode_map(
            image.with_pixels(labels / np.float32(3)), stem="x", maximum=1, algorithm=ALGORITHM, now=now
        ),
    ]
    for encode in ways:
        assert encode(NOW) == encode(NOW)
        one, other = opened(encode(NOW)[0]), opened(encode(None)[0])
        assert uids(one) == uids(other) and one.SOPInstanceUID.startswith("2.25.")


def test_other_pixels_packages_and_kinds_have_other_names():
    image = read_dicom([as_file(ct(VOLUME[0]))])
    other = Algorithm(ALGORITHM.name, ALGORITHM.version, "sha256:" + "f" * 64)
    labels = some_labels(image)
    made = [
        *restore(image),
        *restore(image.with_pixels(image.pixels + 1)),
        *restore(image, algorithm=other),
        segment(labels, image),
        segment(labels * 0, image),
        segment(labels, image, algorithm=other),
    ]
    assert len(set().union(*map(uids, made))) == 2 * len(made)


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID"])
def test_a_source_without_identity_cannot_be_referred_to(name):
    dataset = ct(VOLUME[0])
    del dataset[name]
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=False)
    image = read_dicom([buffer.getvalue()])
    for encode in (lambda: restore(image), lambda: segment(some_labels(image), image)):
        with pytest.raises(UnsupportedImage, match=name):
            encode()


def test_a_kind_that_highdicom_does_not_know():
    retired = "1.2.840.10008.5.1.4.1.1.6"  # ultrasound of 1993
    seg = segment(some_labels(image := read_dicom([as_file(ct(VOLUME[0], SOPClassUID=retired))])), image)
    assert seg.SourceImageSequence[0].ReferencedSOPClassUID == retired


def test_answers_off_the_source_are_refused():
    image = read_dicom(as_files(ct_series(VOLUME)))
    picture = Image.from_picture(np.zeros((9, 7), np.uint8))
    with pytest.raises(OutputError, match="came from DICOM"):
        restore(picture)
    smaller = Image(image.pixels[:, :, 1:], image.geometry.moved((0, 1, 0), (5, 8, 7)), image.source)
    with pytest.raises(OutputError, match="resample"):
        restore(smaller)
    with pytest.raises(OutputError, match="channels"):
        restore(image.with_pixels(np.zeros((3, *VOLUME.shape), np.float32)))
    with pytest.raises(OutputError, match="NaN"):
        restore(image.with_pixels(image.pixels * np.nan))


def test_pixels_that_no_seg_can_hold_are_refused():
    image = read_dicom(as_files(ct_series(VOLUME)))
    zeros = np.zeros((1, *VOLUME.shape), np.uint8)
    for labels in (zeros + 3, zeros.astype(np.float32), np.concatenate([zeros, zeros])):
        with pytest.raises(OutputError, match="label image"):
            segment(labels, image)
    with pytest.raises(OutputError, match="2 labels"):
        encode_probabilities(
            image.with_pixels(zeros.astype(np.float32)), stem="x", labels_info=[LESION, ORGAN], algorithm=ALGORITHM
        )
    for maximum, pixels in ((0.0, zeros * 1.0), (np.inf, zeros * 1.0), (1.0, zeros * np.nan)):
        with pytest.raises(OutputError):
            encode_map(image.with_pixels(pixels), stem="x", maximum=maximum, algorithm=ALGORITHM)


def test_no_patient_in_logs_or_warnings(recwarn):
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        image = read_dicom([as_file(ct(VOLUME[0], PatientName="Mustermannova", StudyID="X" * 40))])
        segment(some_labels(image), image)
        restore(image)
    finally:
        logging.getLogger().removeHandler(handler)
    assert not [record for record in heard if "Mustermannova" in record.getMessage() or "XXXX" in record.getMessage()]
    assert not [warning for warning in recwarn.list if "medae" in warning.filename]


def test_a_restored_series_says_once_who_made_it() -> None:
    """Through the answers of a package: the series keeps its name, the derivation names the model and its digest."""
    from medae.answers import answer_files
    from medae.predictor import Predictor
    from medae.preparation import Percentile, Preparation
    from medae.tasks import Restoration
    from tests.conftest import untrained_package

    package = untrained_package(
        Restoration(), {"kind": "dncnn", "depth": 2, "features": 4}, Preparation(intensity=Percentile())
    )
    image = read_dicom([sample("CT_small.dcm")])
    (file,) = answer_files(Predictor(package)(image), package, stem="ct", original=image)
    answer = dcmread(BytesIO(file.data))
    assert answer.SeriesDescription.endswith("restored (AI)")
    assert answer.DerivationDescription == f"restored by untrained 0.1 {package.digest}"
