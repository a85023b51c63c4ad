"""Restored pixels -> a derived DICOM series: new instances of the source's class in the source's study.

PS3.3 C.7.6.1.1.3: pixels that were processed are another image, with UIDs of its own that point to the source.
What describes the old pixels only (statistics, icons, overlays, signatures, private groups) is dropped; place, rescale,
bit depth and padding are the source's.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian

from medae.errors import OutputError, UnsupportedImage
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile
from medae.io.dicom_answer import (
    IMPLEMENTATION,
    Naming,
    declare_loss,
    numbered,
    processed,
    processing_equipment,
    source_of,
    stamp,
)
from medae.io.dicom_elements import to_bytes, without_pixel_facts
from medae.io.dicom_file import DicomSource, guarded
from medae.io.dicom_frames import frame_count
from medae.io.dicom_pixels import padding_values, rescale, shifts_exactly
from medae.io.dicom_references import reference

# fmt: off
_PALETTE = (
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "PaletteColorLookupTableUID", "PixelPaddingValue", "PixelPaddingRangeLimit",
)
_ACQUIRED = (  # PS3.3 C.8.13.4, of ORIGINAL and MIXED images
    "PulseSequenceName", "MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "MultiPlanarExcitation",
    "PhaseContrast", "VelocityEncodingAcquisitionSequence", "TimeOfFlightContrast", "ArterialSpinLabelingContrast",
    "SteadyStatePulseSequence", "EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression",
    "OversamplingPhase", "GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering",
    "SegmentedKSpaceTraversal", "CoverageOfKSpace", "NumberOfKSpaceTrajectories",
    "BulkMotionCompensationTechnique",  # PS3.3 C.7.6.18.3
)
# fmt: on
_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def encode_restored(
    image: Image, *, stem: str, algorithm: Algorithm, description: str, now: datetime | None = None
) -> list[AnswerFile]:
    """A derived series: `{stem}_restored.dcm` for one slice, else `{stem}_restored/0001.dcm` and on.

    image: float or integer modality values on the grid of its DicomSource, with its channels; they are rounded and
    clipped to the stored type. `now` is the date of the instances (default: the present).
    A source file of several frames becomes one file of as many. Raises OutputError for other grids or channels,
    UnsupportedImage for a source without UIDs to refer to, with a modality table, or with frames that were not read.
    """
    source = source_of(image)
    with guarded("no derived series can be made for a source with this header"):
        naming = Naming("restored", source, image.pixels, algorithm)
        moment = now or datetime.now()
        count = len(source.datasets)
        encoded = [to_bytes(_instance(image, index, naming, description, moment)) for index in range(count)]
    return numbered(f"{stem}_restored", encoded)


def _instance(image: Image, index: int, naming: Naming, description: str, moment: datetime) -> Dataset:
    source, slices = naming.source.datasets[index], _slices_of(naming.source, index)
    answer = without_pixel_facts(source)
    answer.SOPInstanceUID = naming.uid(str(source.SOPInstanceUID))
    answer.SeriesInstanceUID = naming.series_uid
    answer.SeriesNumber = naming.series_number
    answer.SeriesDescription = f"{source.get('SeriesDescription') or ''} {description} (AI)".strip()[-64:]
    answer.ImageType = ["DERIVED", *_image_type(source)[1:]]
    if naming.source.frames:
        _derive_frames(answer)
    algorithm = naming.algorithm
    made_by = f"{description} by {algorithm.name} {algorithm.version} {algorithm.digest}"
    answer.DerivationDescription = made_by[:1024]
    answer.SourceImageSequence = DicomSequence([reference(naming.source, [slice for slice, _ in slices], processed())])
    equipment = list(source.get("ContributingEquipmentSequence") or [])
    answer.ContributingEquipmentSequence = DicomSequence([*equipment, processing_equipment(algorithm)])
    declare_loss(answer, source)
    stamp(answer, moment)
    _set_pixels(answer, source, image, naming.source, slices)
    answer.file_meta = FileMetaDataset()
    answer.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    answer.file_meta.MediaStorageSOPClassUID = answer.SOPClassUID
    answer.file_meta.MediaStorageSOPInstanceUID = answer.SOPInstanceUID
    answer.file_meta.ImplementationClassUID = IMPLEMENTATION
    return answer


def _derive_frames(answer: Dataset) -> None:
    """Every frame says that it was derived, and nothing that only what a scanner acquired may say."""
    shared = list(answer.get("SharedFunctionalGroupsSequence") or ())
    for groups in (*shared, *(answer.get("PerFrameFunctionalGroupsSequence") or ())):
        for group in groups:
            if group.VR == "SQ" and group.value and "FrameType" in group.value[0]:
                group.value[0].FrameType = ["DERIVED", *list(group.value[0].FrameType)[1:]]
    for name in _ACQUIRED if answer.SOPClassUID == _ENHANCED_MR else ():
        if name in answer:
            delattr(answer, name)


def _image_type(source: Dataset) -> Sequence[str]:
    kinds = source.get("ImageType") or ()
    kinds = [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]
    return kinds if len(kinds) > 1 else ["DERIVED", "SECONDARY"]


def _slices_of(source: DicomSource, index: int) -> list[tuple[int, int]]:
    """(slice of the image, frame of the file) of one of its files, in the order of its frames."""
    if not source.frames:
        return [(index, 0)]
    found = [(number, frame) for number, (file, frame) in enumerate(source.frames) if file == index]
    if len(found) != frame_count(source.datasets[index]):
        raise UnsupportedImage(
            "the image is one of several volumes of a DICOM file, and a derived file would lack the others; give the "
            "volume as NIfTI"
        )
    return sorted(found, key=lambda each: each[1])


def _set_pixels(
    answer: Dataset, source: Dataset, image: Image, whole: DicomSource, slices: Sequence[tuple[int, int]]
) -> None:
    values_CRW = image.pixels[:, slices[0][0]]
    is_grey = str(source.PhotometricInterpretation).startswith("MONOCHROME")
    if len(values_CRW) != (1 if is_grey else 3):
        raise OutputError(
            f"a derived DICOM series has the channels of its source, {1 if is_grey else 3}; the answer has "
            f"{len(values_CRW)}. Ask for another output, or give the image as PNG or TIFF"
        )
    if not all(np.isfinite(image.pixels[:, number]).all() for number, _ in slices):
        raise OutputError("the restored pixels contain NaN or infinity, which DICOM cannot store")
    frames = []
    for number, frame in slices:
        if is_grey:
            outside = None if whole.padding is None else whole.padding[number]
            frames.append(_grey(source, image.pixels[0, number], outside, frame))
        else:
            frames.append(_colour(answer, source, image.pixels[:, number]))
    stored = frames[0] if len(frames) == 1 else np.stack(frames)
    answer.add_new("PixelData", "OB" if stored.itemsize == 1 else "OW", _even(stored.tobytes()))


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def _grey(source: Dataset, values_RW: NDArray[Any], padding_RW: NDArray[np.bool_] | None, frame: int) -> NDArray[Any]:
    if "ModalityLUTSequence" in source:
        raise UnsupportedImage(
            "the DICOM source has a modality table, which has no way back to stored values; ask for another output, or "
            "give the image in another format"
        )
    slope, intercept = rescale(source, frame)
    bits, is_signed = int(source.BitsStored), int(source.PixelRepresentation) == 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)
    kind = np.dtype(f"<{'i' if is_signed else 'u'}{int(source.BitsAllocated) // 8}")
    if shifts_exactly(slope, intercept, kind) and values_RW.dtype == np.float32:
        stored: NDArray[Any] = np.rint(values_RW)  # whole numbers first: they are exact in float32, and half the bytes
        np.clip(stored, low + intercept, high + intercept, out=stored)
        stored -= np.float32(intercept)
    else:
        stored = np.clip(np.rint((values_RW.astype(np.float64) - intercept) / slope), low, high)
    ends = padding_values(source)
    if padding_RW is not None and ends is not None:
        stored[padding_RW] = ends[0]
    return stored.astype(kind)


def _colour(answer: Dataset, source: Dataset, values_CRW: NDArray[Any]) -> NDArray[Any]:
    is_palette = source.PhotometricInterpretation == "PALETTE COLOR"
    for name in _PALETTE if is_palette else ():
        if name in answer:
            delattr(answer, name)
    if is_palette:  # what was read, and so restored, are the colours of the table
        answer.BitsAllocated, answer.BitsStored, answer.HighBit, answer.PixelRepresentation = 8, 8, 7, 0
    answer.PhotometricInterpretation, answer.SamplesPerPixel, answer.PlanarConfiguration = "RGB", 3, 0
    stored = np.clip(np.rint(values_CRW), 0, (1 << int(answer.BitsStored)) - 1)
    return np.moveaxis(stored.astype(f"<u{int(answer.BitsAllocated) // 8}"), 0, -1)
