"""Which frames of which source each frame of an answer refers to, for files of one frame as of many.

highdicom refers to files of one frame in space by itself; of several frames it takes only those of enhanced files, all
of them, in their order, in space. So it is told of slices of one frame, whatever they are, each under a handle, and
what it wrote is put right: the handles become references to files and their frames.

Frames without a place (ultrasound, angiography, pages of secondary capture) are piled one above the other for
highdicom, and the made-up places are taken out of what it makes. What tells such frames apart is their label, "frame 7"
of the source (PS3.3 C.7.6.16.2.2, A.51.5: a segmentation without plane positions refers to its source by frame).
"""

import copy
from collections.abc import Sequence
from typing import cast

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import UID, SecondaryCaptureImageStorage

from medae.io.dicom_file import DicomSource
from medae.io.dicom_frames import frame_count

_HANDLE = "1."
_POSITION = Tag("ImagePositionPatient")


def as_slice(header: Dataset, number: int) -> None:
    """Name a header for highdicom: the number-th slice, from 0, a file of one frame."""
    header.SOPClassUID = SecondaryCaptureImageStorage  # a class without frames; reference puts the true one back
    header.SOPInstanceUID = UID(f"{_HANDLE}{number + 1}")


def reference(source: DicomSource, slices: Sequence[int], item: Dataset | None = None) -> Dataset:
    """`item` (default: a new one) made to refer to slices of one file, by numbers from 0; by frame where it has several
    and not all of them are meant (PS3.3 10.3)."""
    of_file = [source.slices[number] for number in slices]
    header = source.datasets[of_file[0][0]]
    item = Dataset() if item is None else item
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if len(of_file) < frame_count(header):
        item.ReferencedFrameNumber = [frame + 1 for _, frame in of_file]
    return item


def refer(made: Dataset, source: DicomSource) -> None:
    """Put the references of what highdicom made from `as_slice` headers right, in place."""
    of_file: dict[int, list[int]] = {}
    for number, (file, _) in enumerate(source.slices):
        of_file.setdefault(file, []).append(number)
    files = [reference(source, sorted(slices, key=source.slices.__getitem__)) for slices in of_file.values()]
    made.SourceImageSequence = DicomSequence(files)
    (series,) = made.ReferencedSeriesSequence  # the slices of an image are of one series
    series.ReferencedInstanceSequence = DicomSequence(files)
    # frames of several segments share an item
    items = {id(item): item for frame in made.PerFrameFunctionalGroupsSequence for item in [_source(frame)]}
    for item in items.values():
        reference(source, [_number(item)], item)


def _source(frame: Dataset) -> Dataset:
    (item,) = frame.DerivationImageSequence[0].SourceImageSequence
    return cast(Dataset, item)


def _number(item: Dataset) -> int:
    return int(item.ReferencedSOPInstanceUID.removeprefix(_HANDLE)) - 1


def is_pile(headers: Sequence[Dataset]) -> bool:
    """Whether these are several frames without a place."""
    return len(headers) > 1 and _POSITION not in headers[0]


def piled(headers: Sequence[Dataset]) -> list[Dataset]:
    """Copies with made-up places."""
    made = [copy.deepcopy(header) for header in headers]  # a copy would share its elements
    for number, header in enumerate(made):
        header.FrameOfReferenceUID = header.get("FrameOfReferenceUID") or _HANDLE + "0"
        # highdicom begins with the highest, and frames shall come in their order
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, -number], [1, 0, 0, 0, 1, 0]
        header.PixelSpacing = header.get("PixelSpacing") or [1, 1]
        header.SliceThickness = header.get("SliceThickness") or 1
    return made


def unpile(made: Dataset, headers: Sequence[Dataset], source: DicomSource) -> None:
    """Take the made-up places out of a SEG of `piled(headers)`, before `refer`, in place."""
    if "FrameOfReferenceUID" not in headers[0]:
        del made.FrameOfReferenceUID, made.PositionReferenceIndicator
    shared = made.SharedFunctionalGroupsSequence[0]
    del shared.PlaneOrientationSequence
    if "PixelSpacing" in headers[0]:
        del shared.PixelMeasuresSequence[0].SpacingBetweenSlices
    else:
        del shared.PixelMeasuresSequence
    made.pop("DimensionOrganizationType", None)
    for dimension in made.DimensionIndexSequence:
        if dimension.DimensionIndexPointer == _POSITION:
            dimension.DimensionIndexPointer = Tag("FrameLabel")
            dimension.FunctionalGroupPointer = Tag("FrameContentSequence")
            dimension.DimensionDescriptionLabel = "Frame of the source"
    for frame in made.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
        of = source.slices[_number(_source(frame))]
        frame.FrameContentSequence[0].FrameLabel = f"frame {of[1] + 1}"
