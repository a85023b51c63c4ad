"""How DICOM answers are to be written: the same words on the command line, at the service, in Python.

Loads neither pydicom nor highdicom, so that every door can read the words before there is an image.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError

from medae.errors import UsageError
from medae.settings import Settings

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")

MapForm = Literal["seg", "parametric", "overlay"]
Maps = Annotated[tuple[MapForm, ...], Field(min_length=1, max_length=3, json_schema_extra={"uniqueItems": True})]


class DicomAnswers(Settings):
    """How answers to DICOM input are written; answers to other input are not touched by it.

    What an answer says is asked by `output`; this is about the objects that say it.
    """

    seg: Literal["binary", "labelmap"] = "binary"
    """Segmentations: binary, which every viewer knows, or labelmap (DICOM 2024: smaller with many labels; few viewers
    know it yet). Probabilities are always FRACTIONAL."""
    empty_frames: bool = False
    """Whether a SEG also has the frames in which nothing is marked: larger, and some viewers want them."""
    map: Maps = ("seg",)
    """Maps of scores: seg (FRACTIONAL SEG), parametric (Parametric Map, floats), overlay (colours over the image as
    secondary capture, for viewers that know neither); several with commas."""
    compress: Literal["none", "jpeg-ls", "jpeg-2000", "rle"] = "none"
    """Lossless compression of whole-number pixels. One-bit and float pixels stay as they are."""
    report: bool = False
    """Whether a structured report (TID 1500) with sizes, scores and the gate's verdict comes with the answer."""

    deidentify: bool = False
    """Whether patient data are taken out (PS3.15 Basic Profile), and UIDs and the patient's number replaced under the
    key of the site, which the command line, the batch or the service was given."""

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> Self:
        """From names and values as people type them. Raises UsageError, which repeats neither."""
        unknown = texts.keys() - cls.model_fields.keys()
        if unknown:
            raise UsageError(f"an unknown word about DICOM answers; there are {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate({name: _value(name, text) for name, text in texts.items()})
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise UsageError(f"{name} of DICOM answers is {_allowed(name)}; it was given something else") from None

    @classmethod
    def from_words(cls, words: Iterable[str]) -> Self:
        """From `name=value`, or `name` alone for `name=true`. Raises UsageError, also for a name that comes twice."""
        pairs = [word.partition("=") for word in words]
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise UsageError("each word about DICOM answers is given once")
        return cls.from_texts({name: value if equals else "true" for name, equals, value in pairs})

    def texts(self) -> dict[str, str]:
        """What differs from the defaults, as `from_texts` reads it."""
        return {name: _text(value) for name, value in self.model_dump(mode="json", exclude_defaults=True).items()}


DEFAULT_DICOM = DicomAnswers()


def series_named(text: str) -> int | str:
    """One of several series as people name it: its number in the list of them, or its SeriesInstanceUID.

    Raises UsageError, which does not repeat it.
    """
    if len(text) <= 9 and text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    if len(text) <= 64 and _UID.fullmatch(text):
        return text
    raise UsageError("a series is named by its number in the list of them, from 1, or by its SeriesInstanceUID")


def _value(name: str, text: str) -> Any:
    if name == "map":
        forms = text.split(",")
        return forms if len(set(forms)) == len(forms) else None
    if DicomAnswers.model_fields[name].annotation is bool:
        return {"true": True, "false": False}.get(text)
    return text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def _allowed(name: str) -> str:
    if name == "map":
        return f"one or more of {', '.join(get_args(MapForm))}, each once, with commas between them"
    kind = DicomAnswers.model_fields[name].annotation
    return "true or false" if kind is bool else f"one of {', '.join(get_args(kind))}"
