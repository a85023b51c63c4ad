"""Answers without the patient: PS3.15 Annex E, Basic Application Level Confidentiality Profile, on what medae writes.

Every attribute of Table E.1-1 is removed, emptied or replaced at any depth, as are private attributes, curves and
overlays. UIDs are replaced under a key, so that the objects of one study still belong together, and still refer to each
other; what was sent keeps its own UIDs, and only the key tells that they are the same. Where the table leaves a choice
by an attribute's type, what is there stays as a dummy or empty, which holds for every type (E.1.1: both hide alike).

Of a report the content is kept: medae wrote all of it, and wrote no text of the patient's (Clean Structured Content
Option). Pixels are not looked at: what says that names are burned into it is refused.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from medae import __version__
from medae.errors import UnsupportedImage
from medae.io.answer import AnswerFile
from medae.io.dicom_answer import MEDIA_TYPE, code_item
from medae.io.dicom_elements import to_bytes
from medae.io.dicom_file import guarded
from medae.io.dicom_profile import ACTIONS, EDITION
from medae.pseudonyms import Pseudonyms

_CONTENT = 0x0040A730  # ContentSequence, of reports
_PATIENT_ID = 0x00100020
_DUMMIES: dict[str, Any] = {
    "AE": "REMOVED",
    "AS": "000Y",
    "CS": "REMOVED",
    "DA": "19000101",
    "DT": "19000101000000",
    "LO": "REMOVED",
    "LT": "REMOVED",
    "PN": "REMOVED",
    "SH": "REMOVED",
    "ST": "REMOVED",
    "TM": "000000",
    "UC": "REMOVED",
    "UR": "urn:removed",
    "UT": "REMOVED",
}


def deidentified(files: Sequence[AnswerFile], pseudonyms: Pseudonyms) -> list[AnswerFile]:
    """With the DICOM files among them de-identified; their names and all other files stay as they are.

    Raises UnsupportedImage for pixels that hold text about a patient, by their own header.
    """
    return [_deidentified(file, pseudonyms) if file.media_type == MEDIA_TYPE else file for file in files]


def _deidentified(file: AnswerFile, pseudonyms: Pseudonyms) -> AnswerFile:
    with guarded("the answer cannot be de-identified: its source's header is damaged"):
        dataset = dcmread(BytesIO(file.data))
        if dataset.get("BurnedInAnnotation") == "YES":
            raise UnsupportedImage(
                "the image says that text is burned into its pixels, and medae does not clean pixels; mask the text "
                "first, or ask without deidentify"
            )
        deidentify(dataset, pseudonyms)
        return file._replace(data=to_bytes(dataset))


def deidentify(dataset: Dataset, pseudonyms: Pseudonyms) -> None:
    """In place, and said so in the dataset: PatientIdentityRemoved, DeidentificationMethod and its codes."""
    is_report = _CONTENT in dataset
    _clean(dataset, pseudonyms)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    method = f"medae {__version__}: PS3.15 {EDITION} Basic Profile"
    dataset.DeidentificationMethod = [*_several(dataset.get("DeidentificationMethod")), method]
    said = [code_item("113100", "DCM", "Basic Application Confidentiality Profile")]
    if is_report:
        said.append(code_item("113104", "DCM", "Clean Structured Content Option"))
    known = list(dataset.get("DeidentificationMethodCodeSequence") or [])
    new = [item for item in said if item.CodeValue not in [one.get("CodeValue") for one in known]]
    dataset.DeidentificationMethodCodeSequence = DicomSequence([*known, *new])


def _several(value: Any) -> list[str]:
    if value in (None, ""):
        return []
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _clean(dataset: Dataset, pseudonyms: Pseudonyms) -> None:
    for element in list(dataset):
        tag = element.tag
        if tag.is_private or tag.group & 0xFF00 in (0x5000, 0x6000):
            del dataset[tag]
            continue
        action = ACTIONS.get(int(tag), "")
        if tag == _CONTENT or action == "X/Z/U*":
            action = ""  # its items are cleaned one by one
        if action == "X" or (element.VR == "SQ" and "D" in action):
            _empty_or_remove(dataset, element, action)
        elif action in ("Z", "X/Z"):
            element.value = DicomSequence() if element.VR == "SQ" else None
        elif action == "U" and element.VR == "UI":
            element.value = _others(element.value, pseudonyms)
        elif "D" in action:
            element.value = _dummy(element, pseudonyms)
        elif element.VR == "SQ":
            for item in element.value:
                _clean(item, pseudonyms)


def _empty_or_remove(dataset: Dataset, element: DataElement, action: str) -> None:
    """A sequence has no dummy; where a type could ask for its presence, it stays, empty."""
    if "Z" in action:
        element.value = DicomSequence()
    else:
        del dataset[element.tag]


def _others(value: Any, pseudonyms: Pseudonyms) -> Any:
    if not value:
        return value
    return pseudonyms.uid(value) if isinstance(value, str) else [pseudonyms.uid(one) for one in value]


def _dummy(element: DataElement, pseudonyms: Pseudonyms) -> Any:
    """Nothing stays nothing. A patient's number becomes another, the same for all images of one patient."""
    if element.is_empty:
        return None
    if element.tag == _PATIENT_ID:
        return pseudonyms.name(str(element.value))
    if element.VR in _DUMMIES:
        return _DUMMIES[element.VR]
    return b"\0\0" if element.VR in ("OB", "OW", "UN") else 0
