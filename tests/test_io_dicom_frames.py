"""Answers to DICOM files of several frames: a derived file of as many, or a refusal that costs only its own item."""

import shutil
import subprocess

import numpy as np
import pytest

from medae.errors import UnsupportedImage
from medae.io import encode_restored, read_image
from tests.dicom_made import ALGORITHM, as_file, ct, item_of_lut, sample, segment
from tests.test_io_dicom_kinds import VOLUME, enhanced


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


def test_other_answers_are_refused_with_what_to_do():
    image = read_image(as_file(enhanced(VOLUME)))
    with pytest.raises(UnsupportedImage, match="labels-nifti"):
        segment(np.zeros((1, *VOLUME.shape), np.uint8), image)


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
