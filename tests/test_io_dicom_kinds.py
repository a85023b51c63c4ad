"""Kinds of DICOM images and of pixels: the values that other readers give, in the place that the header says."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, JPEGExtended12Bit

from medae.errors import SeriesError, UnsupportedImage
from medae.io import read_image
from medae.io.dicom import group_series, read_dicom
from tests.dicom_made import DIRECTIONS, as_file, as_files, ct, ct_series, sample, written

RNG = np.random.default_rng(5)
VOLUME = RNG.permutation(6 * 7 * 5).reshape(6, 7, 5).astype(np.int16)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def enhanced(volume, *, order=None, directions=DIRECTIONS["oblique"], step=2.5, stacks=1, **changes):
    """An enhanced CT of (S, R, W) pixels: its frames in `order`, each with its place and its rescale."""
    frames = len(volume)
    order = list(range(frames)) if order is None else order
    dataset = ct(volume[0], ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    for name in ("RescaleSlope", "RescaleIntercept", "SliceThickness"):
        del dataset[name]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = frames
    dataset.PixelData = np.ascontiguousarray(volume[order]).astype("<i2").tobytes()
    shared, per_frame = Dataset(), []
    shared.PixelMeasuresSequence = [item(PixelSpacing=[0.7, 1.1], SliceThickness=step)]
    flat = [float(value) for direction in directions for value in direction]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=flat)]
    normal = np.cross(*directions)
    for index in order:
        frame = Dataset()
        place = index % (frames // stacks)
        position = [round(float(value), 6) for value in (-31.5, 17.25, 40.0) + place * step * normal]
        frame.PlanePositionSequence = [item(ImagePositionPatient=position)]
        frame.FrameContentSequence = [item(DimensionIndexValues=[1 + index // (frames // stacks), 1 + place])]
        transform = item(RescaleSlope=1.5 + index, RescaleIntercept=-index, RescaleType="US")
        frame.PixelValueTransformationSequence = [transform]
        per_frame.append(frame)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = per_frame
    dataset.DimensionIndexSequence = [item(DimensionIndexPointer=0x00209128), item(DimensionIndexPointer=0x00209057)]
    for name, value in changes.items():
        setattr(dataset, name, value)
    return dataset


def item(**values):
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def values_of(volume):
    return np.array([frame * (1.5 + at) - at for at, frame in enumerate(volume.astype(float))], np.float32)


# -- enhanced and multi-frame -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(6)), directions=st.sampled_from(sorted(DIRECTIONS)), step=st.floats(0.5, 7))
def test_an_enhanced_volume_lies_where_its_frames_lie(order, directions, step):
    image = read_dicom([as_file(enhanced(VOLUME, order=order, directions=DIRECTIONS[directions], step=step))])
    np.testing.assert_array_equal(image.pixels[0], values_of(VOLUME))
    normal = np.cross(*DIRECTIONS[directions])
    for s, r, w in [(0, 0, 0), (5, 6, 4), (3, 0, 2)]:
        row, column = (np.array(direction) for direction in DIRECTIONS[directions])
        lps = (-31.5, 17.25, 40.0) + s * step * normal + r * 0.7 * column + w * 1.1 * row
        np.testing.assert_allclose(image.geometry.world((s, r, w)), LPS_TO_RAS @ lps, atol=1e-4)
    assert [order[frame] for _, frame in image.source.frames] == list(range(6))
    assert len(image.source.datasets) == 1 and {dataset for dataset, _ in image.source.frames} == {0}


def test_an_enhanced_volume_is_the_same_as_its_single_frames():
    def rescaled(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1.5 + index, -index

    single = read_dicom(as_files(ct_series(VOLUME, DIRECTIONS["oblique"], change=rescaled)))
    multi = read_dicom([as_file(enhanced(VOLUME))])
    np.testing.assert_array_equal(single.pixels, multi.pixels)
    np.testing.assert_allclose(single.geometry.affine, multi.geometry.affine, atol=1e-9)


def test_volumes_at_one_place_are_listed_and_one_is_chosen():
    data = as_file(enhanced(VOLUME, stacks=2))
    with pytest.raises(SeriesError, match=r"not one series but 2: \[1\] 3 x CT 7x5 oblique; \[2\] 3 x CT 7x5 oblique"):
        read_image(data)
    for chosen in (1, 2):
        part = slice(3 * chosen - 3, 3 * chosen)
        np.testing.assert_array_equal(read_image(data, series=chosen).pixels[0], values_of(VOLUME)[part])
    with pytest.raises(SeriesError, match="not among the 2"):
        read_image(data, series=3)


def test_places_that_nothing_tells_apart_are_refused():
    dataset = enhanced(VOLUME, stacks=2)
    del dataset.DimensionIndexSequence
    with pytest.raises(SeriesError, match="share their place"):
        read_dicom([as_file(dataset)])


def test_frames_without_a_place_are_a_pile_of_pictures(shared_data):
    path = shared_data / "dicom_zoo" / "barre" / "MR-MONO2-8-16x-heart"
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels[0], dcmread(path).pixel_array)
    assert image.geometry.unit == "px" and image.geometry.shape == (16, 256, 256)


def test_colour_frames():
    path = sample("examples_ybr_color.dcm")
    image = read_image(path)
    np.testing.assert_array_equal(np.moveaxis(image.pixels, 0, -1), dcmread(path).pixel_array)
    assert image.geometry.unit == "px"


def test_a_multi_frame_file_is_one_group(tmp_path):
    files = [as_file(enhanced(VOLUME)), as_file(enhanced(VOLUME, stacks=2, SeriesInstanceUID="1.2.3"))]
    groups = group_series([*written(files, tmp_path), sample("examples_ybr_color.dcm")])
    assert [group.count for group in groups] == [1, 1, 1]


def test_many_single_frames_and_a_multi_frame_file_are_not_one_volume():
    files = [*as_files(ct_series(VOLUME, change=sop_class)), as_file(enhanced(VOLUME, directions=DIRECTIONS["axial"]))]
    with pytest.raises(SeriesError, match="not one series but 2"):
        read_dicom(files)


def sop_class(dataset, index):
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"


# -- which series -----------------------------------------------------------------------------------------------------


def test_a_localiser_beside_a_scan_is_skipped():
    scan = as_files(ct_series(VOLUME))
    overview = as_file(ct(VOLUME[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    image = read_dicom([overview, *scan])
    np.testing.assert_array_equal(image.pixels, read_dicom(scan).pixels)
    assert sorted(index for index, _ in image.source.origins) == [1, 2, 3, 4, 5, 6]
    assert read_dicom([overview]).geometry.shape == (1, 7, 5)


def test_a_series_is_chosen_by_number_or_uid():
    def named(slices):
        return lambda dataset, index: setattr(dataset, "SeriesInstanceUID", f"1.{slices}")

    first, second = (as_files(ct_series(VOLUME[:slices], change=named(slices))) for slices in (2, 3))
    files = [*second, *first]
    for series, slices in ((1, 3), (2, 2), ("1.2", 2), ("1.3", 3)):
        assert read_image(files, series=series).geometry.shape[0] == slices
    for series in (0, -1, 3, "1.4", "1"):
        with pytest.raises(SeriesError, match="not among the 2"):
            read_image(files, series=series)


def test_reports_beside_a_series_are_passed_over():
    image = read_image([sample("reportsi.dcm").read_bytes(), *as_files(ct_series(VOLUME))])
    assert image.geometry.shape == VOLUME.shape


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_htj2k(syntax, dtype):
    import imagecodecs

    pixels = RNG.integers(-1000 if dtype == np.int16 else 0, 3000, (33, 47)).astype(dtype)
    stream = imagecodecs.htj2k_encode(pixels, reversible=True)
    image = read_image(compressed(pixels, stream, syntax))
    expected = pixels.astype(np.float32) - 1024  # the template's intercept
    np.testing.assert_array_equal(image.pixels[0, 0], expected)
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(stream), pixels)  # OpenJPEG, not OpenJPH


def test_htj2k_colour():
    import imagecodecs

    pixels = RNG.integers(0, 255, (33, 47, 3)).astype(np.uint8)
    dataset = dcmread(BytesIO(as_file(dcmread(sample("SC_rgb_small_odd.dcm")))))
    dataset.Rows, dataset.Columns, dataset.PhotometricInterpretation = 33, 47, "YBR_RCT"
    stream = imagecodecs.htj2k_encode(pixels, reversible=True)
    image = read_image(encapsulated(dataset, stream, HTJ2KLossless))
    np.testing.assert_array_equal(np.moveaxis(image.pixels[:, 0], 0, -1), pixels)


def test_jpeg_of_12_bits_is_what_another_decoder_reads(shared_data):
    sitk = pytest.importorskip("SimpleITK")
    for name in ("MR1", "MR4", "NM1"):
        path = shared_data / "dicom_zoo" / "wg04" / "JPLY" / f"{name}_JPLY"
        assert dcmread(path).file_meta.TransferSyntaxUID == JPEGExtended12Bit
        peer = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)
        assert np.abs(read_image(path).pixels[0] - peer).max() <= 1  # two inverse cosine transforms


def compressed(pixels, stream, syntax):
    return encapsulated(ct(pixels), stream, syntax)


def encapsulated(dataset, stream, syntax):
    dataset.file_meta = FileMetaDataset(dataset.file_meta)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return as_file(dataset)


def test_video_is_refused():
    dataset = ct(VOLUME[0])
    with pytest.raises(UnsupportedImage, match="compressed in a way that is not read"):
        read_image(encapsulated(dataset, b"\0\0\1\xb3" + bytes(60), "1.2.840.10008.1.2.4.102"))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_grey_of_every_width_is_exact(dtype):
    info = np.iinfo(dtype)
    pixels = RNG.integers(info.min, info.max, (7, 5), dtype=dtype, endpoint=True)
    bits = info.bits
    dataset = ct(pixels, BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, RescaleSlope=1, RescaleIntercept=0)
    image = read_image(as_file(dataset))
    np.testing.assert_array_equal(image.pixels[0, 0].astype(np.float64), pixels.astype(np.float64))


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_real_pixels(keyword, dtype):
    pixels = RNG.standard_normal((8, 5)).astype(dtype)
    dataset = ct(VOLUME[0], PixelData=None, BitsStored=None, HighBit=None, PixelRepresentation=None)
    dataset.SOPClassUID, dataset.Rows, dataset.Columns = "1.2.840.10008.5.1.4.1.1.30", 8, 5
    dataset.BitsAllocated, dataset.RescaleSlope, dataset.RescaleIntercept = pixels.itemsize * 8, 2, 1
    setattr(dataset, keyword, pixels.tobytes())
    image = read_image(as_file(dataset))
    assert image.pixels.dtype == dtype
    np.testing.assert_allclose(image.pixels[0, 0], pixels.astype(float) * 2 + 1, rtol=1e-6)


def test_a_modality_table_and_no_voi_table():
    table = item(LUTDescriptor=[256, 0, 16], ModalityLUTType="HU")
    table.add_new("LUTData", "OW", RNG.integers(0, 60000, 256).astype("<u2").tobytes())
    view = item(LUTDescriptor=[256, 0, 8])
    view.add_new("LUTData", "OW", bytes(256))
    pixels = RNG.integers(0, 256, (7, 5)).astype(np.uint16)
    dataset = ct(pixels, ModalityLUTSequence=[table], VOILUTSequence=[view], RescaleSlope=None, RescaleIntercept=None)
    expected = apply_modality_lut(pixels, dataset)
    np.testing.assert_array_equal(read_image(as_file(dataset)).pixels[0, 0], expected)


def test_monochrome1_keeps_its_values():
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        image = read_image(as_file(ct(VOLUME[0], PhotometricInterpretation=photometric)))
        np.testing.assert_array_equal(image.pixels[0, 0], VOLUME[0] - 1024.0)


@pytest.mark.parametrize(
    "name",
    [
        "dcm_qa_enh/Siemens/XA10/6_1.dcm",
        "dcm_qa_enh/Siemens/XA10/6_2.dcm",
        "dcmqi/segmentations/23x38x3/multiframe/mf.dcm",
        "pydicom_data/parametric_map_double_float.dcm",
    ],
)
def test_highdicom_finds_the_same_values_of_enhanced_images_at_the_same_places(shared_data, name):
    import highdicom

    path = shared_data / "dicom_zoo" / name
    image = read_image(path)
    peer = highdicom.imread(path).get_volume(apply_real_world_transform=False, apply_modality_transform=None)
    for s, r, w in np.ndindex(image.geometry.shape[0], 2, 2):
        at = (s, r * (image.geometry.shape[1] - 1), w * (image.geometry.shape[2] - 1))
        lps = LPS_TO_RAS @ image.geometry.world(at)
        index = np.linalg.inv(peer.affine) @ [*lps, 1]
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        there = tuple(np.rint(index[:3]).astype(int))
        assert image.pixels[0][at] == pytest.approx(peer.array[there], rel=1e-6)
