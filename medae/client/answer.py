"""What came: an answer with its files, or the error that Python would have raised for the same image."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import httpx

from medae.errors import (
    AccessDenied,
    InputError,
    MedaeError,
    OutputError,
    ServiceError,
    TrainingError,
    UsageError,
)
from medae.image import Image
from medae.io import AnswerFile, read_image, read_labels, write_files

JSON = "application/json"
ZIP = "application/zip"
IN_MEMORY = 64 << 20
"""Bytes of one answer that arrive in memory."""
MANIFEST = "manifest.json"
SUMMARY_SUFFIX = "_summary.json"


@dataclass(frozen=True)
class Reply:
    """An HTTP response that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: IO[bytes] = field(repr=False)
    """In memory or, when it is large, in a file without a name."""

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> dict[str, Any]:
        """Raises ServiceError for anything but an object: a proxy's page, another service."""
        self.body.seek(0)
        try:
            value = json.loads(self.body.read())
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _not_ours(self.status)
        return value


@contextmanager
def spooled() -> Iterator[IO[bytes]]:
    """The body of a reply, to be written; of one that breaks off, at whatever moment, nothing is kept."""
    with ExitStack() as closing:
        yield closing.enter_context(SpooledTemporaryFile(IN_MEMORY))
        closing.pop_all()


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer for one image."""

    files: tuple[AnswerFile, ...]
    """Named image_..., whatever the file was called; their digests have been compared with the summary's."""
    summary: Mapping[str, Any]
    """Task, model, scores, percentile, p_value, decision, gate, files, provenance."""
    seconds: float
    """From asking to having it, waiting and asking again included."""
    stem: str = "image"
    """What the names of the files begin with."""

    @property
    def model(self) -> str:
        """name@digest"""
        return "{name}@{digest}".format(**self.summary["model"])

    @property
    def gate(self) -> str:
        """ok, review, reject or none: how far the image was from what the model knows."""
        return str((self.summary.get("gate") or {}).get("verdict", "none"))

    @property
    def scores(self) -> Mapping[str, float]:
        """Name -> value; what they mean depends on the model's task."""
        scores: Mapping[str, float] = self.summary["scores"]
        return scores

    @cached_property
    def image(self) -> Image:
        """Labels, the restored image or the map, with its place; read at the first look.

        Raises UsageError for an answer without files, UnsupportedImage for DICOM SEG (ask for output="labels-nifti").
        """
        if not self.files:
            raise UsageError("this answer has no file: only its summary was asked for")
        read = read_labels if self.summary.get("task") == "segmentation" else read_image
        return read([file.data for file in self.files if not file.name.endswith("_report.dcm")])

    def save(self, folder: Path, *, stem: str | None = None) -> list[Path]:
        """Write the files below `folder`, all or none; their paths. stem: what they are called instead.

        Raises OutputError.
        """
        named = self.files
        if stem is not None:
            named = tuple(file._replace(name=stem + file.name.removeprefix(self.stem)) for file in named)
        return write_files(named, folder)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Of one image among many: an answer, or the reason why there is none."""

    number: int
    """Its place among what was asked, from 0."""
    answer: Answer | None = None
    error: MedaeError | None = None

    def get(self) -> Answer:
        """The answer. Raises the error."""
        if self.answer is None:
            raise self.error or ServiceError("neither an answer nor an error came")
        return self.answer


def forget(outcome: Reply | httpx.TransportError) -> None:
    """Of an attempt that is not the last."""
    if isinstance(outcome, Reply):
        outcome.body.close()


def reply_of(outcome: Reply | httpx.TransportError) -> Reply:
    """Raises ServiceError where nothing came."""
    if isinstance(outcome, Reply):
        return outcome
    what = "did not answer in time" if isinstance(outcome, httpx.TimeoutException) else "cannot be reached"
    raise ServiceError(f"the service {what} ({type(outcome).__name__}); is it running at this address?") from None


def answer_of(reply: Reply, seconds: float) -> Answer:
    """Raises the error that a refusal stands for; ServiceError for what is no answer, or was damaged on its way."""
    with reply.body, _ours(reply.status):
        _require_ok(reply)
        if reply.media_type != ZIP:
            return Answer((), reply.json(), seconds)
        content = _unzipped(reply)
        summary = json.loads(next((data for name, data in content.items() if name.endswith(SUMMARY_SUFFIX)), b""))
        return Answer(_listed(summary, content), summary, seconds)


def outcomes_of(reply: Reply, seconds: float) -> list[Outcome]:
    """What became of each image of one request, in order. Raises as answer_of does."""
    with reply.body, _ours(reply.status):
        _require_ok(reply)
        content = _unzipped(reply)
        items = json.loads(content[MANIFEST])["items"]
        return [_outcome(number, item, content, seconds) for number, item in enumerate(items)]


def _outcome(number: int, item: Mapping[str, Any], content: Mapping[str, bytes], seconds: float) -> Outcome:
    if item["status"] != 200:
        return Outcome(number, error=error_of(item["status"], item["problem"]))
    summary = item["summary"]
    return Outcome(number, Answer(_listed(summary, content), summary, seconds, f"{number:06d}"))


def object_of(reply: Reply) -> dict[str, Any]:
    """A JSON answer. Raises as answer_of does."""
    with reply.body:
        _require_ok(reply)
        return reply.json()


def _require_ok(reply: Reply) -> None:
    if reply.status != 200:
        is_problem = reply.media_type == "application/problem+json"
        raise error_of(reply.status, reply.json() if is_problem else {})


def error_of(status: int, problem: Mapping[str, Any]) -> MedaeError:
    """A problem (RFC 9457) of the service as an error of ours, with the service's status and code."""
    code = str(problem.get("code") or "")
    kind = _kind(status, code)
    reason = str(problem.get("detail") or problem.get("title") or "no reason was given")
    if kind is ServiceError:
        reason = f"the service answered {status}: {reason}"
        if instance := str(problem.get("instance", "")).removeprefix("urn:uuid:"):
            reason += f" (request {instance} in its log)"
    error = kind(reason)
    error.status, error.code = status, code or kind.code
    return error


def _kind(status: int, code: str) -> type[MedaeError]:
    if status in (401, 403):
        return AccessDenied
    if status >= 500 or status in (408, 429) or not code:
        return ServiceError
    if code in _KINDS:
        return _KINDS[code]
    if status in (413, 415, 422):
        return InputError
    return UsageError if status == 400 else ServiceError


def _kinds(kind: type[MedaeError]) -> Iterator[tuple[str, type[MedaeError]]]:
    if "code" in vars(kind):  # not a reader's own kind of one of them
        yield kind.code, kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


# the other errors are about this machine: of the service's they would mean something else
_KINDS = {
    code: kind
    for code, kind in _kinds(MedaeError)
    if kind not in (MedaeError, OutputError, TrainingError, ServiceError)
}


def _unzipped(reply: Reply) -> dict[str, bytes]:
    try:
        with ZipFile(reply.body) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}
    except (BadZipFile, NotImplementedError, EOFError):
        raise ServiceError("the answer's zip is damaged; ask again") from None


def _listed(summary: Mapping[str, Any], content: Mapping[str, bytes]) -> tuple[AnswerFile, ...]:
    """The files that a summary names."""
    listed = summary["files"]
    files = tuple(AnswerFile(item["name"], item["media_type"], content[item["name"]]) for item in listed)
    if [hashlib.sha256(file.data).hexdigest() for file in files] != [item["sha256"] for item in listed]:
        raise ServiceError("a file of the answer was damaged on its way (its digest differs); ask again")
    return files


@contextmanager
def _ours(status: int) -> Iterator[None]:
    """What is not built as our answers are comes from somebody else."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        raise _not_ours(status) from None


def _not_ours(status: int) -> ServiceError:
    return ServiceError(
        f"what came is no answer of a medae service (status {status}); check the address, and any proxy in between"
    )
