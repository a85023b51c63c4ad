"""Elements of answers: written as pydicom would write them, and those that do not change as they came."""

import warnings
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.tag import Tag

from medae.io.dicom import encode_restored, read_dicom
from medae.io.dicom_elements import to_bytes, without_pixel_facts
from tests.dicom_made import ALGORITHM, as_file, ct, sample

NEW = (
    "SOPInstanceUID SeriesInstanceUID SeriesNumber SeriesDescription ImageType DerivationDescription PixelData "
    "SourceImageSequence ContributingEquipmentSequence SeriesDate ContentDate InstanceCreationDate SeriesTime "
    "ContentTime InstanceCreationTime"
)
CHANGED = {Tag(name) for name in NEW.split()}
NAMES = (
    *("CT_small", "MR_small", "MR_small_bigendian", "MR_small_implicit", "SC_rgb_rle", "examples_palette", "693_J2KI"),
    *("rtplan", "reportsi", "liver_1frame", "test-SR", "examples_overlay"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seen", [False, True], ids=["as it came", "looked at"])
def test_a_file_is_what_pydicom_makes_of_it(name, seen):
    one, other = (dcmread(sample(f"{name}.dcm")) for _ in range(2))
    for dataset in (one, other):
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if one.file_meta.TransferSyntaxUID in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2"):
        for dataset in (one, other):
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    written = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some values are none of their kind
        if seen:
            list(one.iterall()), list(other.iterall())
        one.preamble = None
        dcmwrite(written, one, implicit_vr=False, little_endian=True, enforce_file_format=True)
        assert to_bytes(other) == written.getvalue()


@pytest.mark.parametrize("name", ["CT_small", "MR_small", "693_J2KI", "SC_rgb_rle", "examples_rgb_color"])
def test_what_does_not_change_has_the_bytes_that_it_had(name):
    path = sample(f"{name}.dcm")
    source = dcmread(path)
    assert source.original_encoding == (False, True)
    (file,) = encode_restored(read_dicom([path]), stem="x", algorithm=ALGORITHM, description="denoised")
    answer = dcmread(BytesIO(file.data))
    same = [tag for tag in answer.keys() if tag in source and tag not in CHANGED and answer.get_item(tag).VR != "SQ"]  # noqa: SIM118
    assert len(same) > 30
    different = [tag for tag in same if answer.get_item(tag).value != source.get_item(tag).value]
    assert not different


def test_odd_bytes_and_texts_of_any_character_set_are_kept():
    """What a scanner wrote is not made prettier: spaces, leading zeros and exponents stay; a missing byte is added."""
    pixels = np.arange(35, dtype=np.int16).reshape(5, 7)
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    source = ct(pixels, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name, KVP="+1.200E+02")
    data = as_file(source).replace(b"+1.200E+02", b"+01.20E+02")
    (file,) = encode_restored(read_dicom([data]), stem="x", algorithm=ALGORITHM, description="denoised")
    answer, before = dcmread(BytesIO(file.data)), dcmread(BytesIO(data))
    for keyword in ("SpecificCharacterSet", "PatientName", "KVP"):
        assert answer.get_item(keyword).value == before.get_item(keyword).value
    assert b"+01.20E+02" in file.data
    assert str(answer.PatientName) == name


def test_nothing_private_and_nothing_about_old_pixels_is_kept():
    source = dcmread(sample("CT_small.dcm"))
    source.SmallestImagePixelValue = 0
    source.add_new(0x60003000, "OW", b"\1\2")
    source.add_new(0x50000010, "US", 1)
    kept = without_pixel_facts(source)
    assert any(tag.is_private for tag in source.keys())  # noqa: SIM118
    assert not any(tag.is_private or tag.group >> 8 in (0x50, 0x60) for tag in kept.keys())  # noqa: SIM118
    assert "SmallestImagePixelValue" not in kept and "Rows" in kept
    source = dcmread(sample("nested_priv_SQ.dcm"))
    assert any(element.tag.is_private for element in source.iterall())
    assert not any(element.tag.is_private for element in without_pixel_facts(source).iterall())
    assert any(element.tag.is_private for element in source.iterall())  # the source stays as it is
