"""One case of a batch, from its files to its answers: the same work in every engine."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from medae import answers
from medae.batch.item import Item
from medae.batch.sources import Fingerprint, fetch
from medae.errors import InputError, LimitExceeded, MedaeError
from medae.image import Image
from medae.io import DEFAULT_LIMITS, Limits, read_image, write_files
from medae.io.answer import AnswerFile
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers
from medae.predictor import Predictor, check_call
from medae.pseudonyms import Pseudonyms

logger = logging.getLogger(__name__)

T = TypeVar("T")

STAGES = ("read", "decode", "predict", "encode", "write")
"""Of the work on one case; predict is preparation, forward passes and the answer on the image's own grid."""

TABLE_ONLY = "table"
"""The output without files: the table of results has the numbers."""


class Kept(NamedTuple):
    """A file of an answer that was written, under its own name or still under another."""

    name: str
    """Relative to the output folder."""
    sha256: str = ""
    staged: str = ""
    """Where it waits to be committed, relative to the staging folder; empty where it is in its place."""


class Put(Protocol):
    """Writes the files of one answer."""

    def __call__(self, files: Sequence[AnswerFile], item: Item, package: str) -> list[Kept]: ...


@dataclass(frozen=True)
class Direct:
    """Each answer whole into `out`, in its place at once."""

    out: Path

    def __call__(self, files: Sequence[AnswerFile], item: Item, package: str) -> list[Kept]:
        write_files(files, self.out)
        return [Kept(file.name) for file in files]


class Failure(NamedTuple):
    """Why there is no answer."""

    status: Literal["failed", "fault"]
    code: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of one case with one model."""

    item: Item
    status: Literal["done", "failed", "fault"]
    """failed: the input is at fault, `reason` says how; fault: medae is, the log says where."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each of STAGES that was reached."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """The summary JSON of a done case."""
    code: str = ""
    reason: str = ""
    package: str = ""
    """Which of the batch's models."""
    fingerprint: Fingerprint | None = None
    """Of the input, where it could be read."""
    kept: tuple[Kept, ...] = ()
    vector: NDArray[np.float32] | None = field(default=None, compare=False)
    """(Z,): what an autoencoder that embeds makes of a done case."""

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())


class Decoded(NamedTuple):
    """A case on its way from the reader to the models; picklable, for engines that read elsewhere."""

    image: Image | Failure
    fingerprint: Fingerprint | None
    stages: Mapping[str, float]


class Answer(NamedTuple):
    """What one model said of one case."""

    summary: Mapping[str, Any]
    kept: tuple[Kept, ...] = ()
    vector: NDArray[np.float32] | None = None


class Embedder(Protocol):
    """Turns an image into a vector, as `medae.latent.LatentSpace` does."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """As that of a Predictor."""

    def embed(self, image: Image) -> NDArray[np.float32]: ...


def decode(item: Item, limits: Limits = DEFAULT_LIMITS, allow: Sequence[str] = ()) -> Decoded:
    """The image of a case, or why there is none. allow: the beginnings of the URLs that may be opened."""
    clock = _Clock()
    fingerprint: Fingerprint | None = None

    def read() -> Image:
        nonlocal fingerprint
        with clock("read"):
            sources, fingerprint = fetch(item.files, limits, allow)
        with clock("decode"):
            return read_item(item, sources, limits)

    image = _attempt(read)
    return Decoded(image, fingerprint, clock.stages)


def read_item(item: Item, sources: Sequence[Path | bytes], limits: Limits = DEFAULT_LIMITS) -> Image:
    """The image of a case whose files were fetched. Raises as read_image."""
    source = sources if len(sources) > 1 else sources[0]
    return read_image(source, limits=limits, series=item.series, regular_grid=item.regular_grid)


class Hand:
    """Works on one case after the other with all models of a batch; a bad input fails alone."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        put: Put,
        *,
        embedders: Mapping[str, Embedder] = MappingProxyType({}),
        output: str = "default",
        threshold: float | None = None,
        dicom: DicomAnswers = DEFAULT_DICOM,
        pseudonyms: Pseudonyms | None = None,
        summaries: bool = True,
    ) -> None:
        """predictors, embedders: by the name that the batch calls each. summaries: a summary JSON beside each answer.

        Raises UsageError for an output or threshold that one of the models does not know.
        """
        for predictor in predictors.values():
            if output != TABLE_ONLY:
                answers.check_output(output, predictor.package)
                answers.check_dicom(dicom, predictor.package, pseudonyms)
            check_call(predictor.package, threshold=threshold)
        self._predictors = predictors
        self._embedders = embedders
        self._put = put
        self._output = output
        self._threshold = threshold
        self._dicom = dicom
        self._pseudonyms = pseudonyms
        self._summaries = summaries

    def answer(self, item: Item, decoded: Decoded) -> tuple[Outcome, ...]:
        """An outcome for each model that the case is for; the reading counts for the first one's seconds.

        Raises what concerns all cases alike: OutputError where answers cannot be written, UsageError.
        """
        outcomes: list[Outcome] = []
        for package in item.packages or (*self._predictors, *self._embedders):
            clock = _Clock({} if outcomes else dict(decoded.stages))
            image = decoded.image
            made = image if isinstance(image, Failure) else _attempt(self._work(item, image, package, clock))
            outcomes.append(_outcome(item, package, made, decoded.fingerprint, clock.stages))
        return tuple(outcomes)

    def _work(self, item: Item, image: Image, package: str, clock: "_Clock") -> Callable[[], Answer]:
        if package in self._embedders:
            return partial(_embed, self._embedders[package], image, clock)
        predictor = self._predictors[package]

        def work() -> Answer:
            with clock("predict"):
                probabilities = self._output == "probabilities"
                prediction = predictor(image, threshold=self._threshold, probabilities=probabilities)
            with clock("encode"):
                files: list[AnswerFile] = []
                if self._output != TABLE_ONLY:
                    files = answers.answer_files(
                        prediction,
                        predictor.package,
                        stem=item.stem,
                        original=image,
                        output=self._output,
                        dicom=self._dicom,
                        pseudonyms=self._pseudonyms,
                    )
                files = [file for file in files if file.media_type != "application/json"]  # one summary a case: below
                summary = answers.summary(prediction, id=item.id, files=files)
                if self._summaries or self._output == "summary":
                    files = [answers.summary_file(prediction, stem=item.stem, files=files), *files]
            with clock("write"):
                kept = self._put(files, item, package) if files else []
            return Answer(summary, tuple(kept))

        return work


def _embed(embedder: Embedder, image: Image, clock: "_Clock") -> Answer:
    with clock("predict"):
        vector = embedder.embed(image)
    return Answer({"scores": {}, "provenance": embedder.provenance}, vector=vector)


@dataclass
class _Clock:
    """Seconds by stage."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] = time.perf_counter() - start


def _attempt(call: Callable[[], T]) -> T | Failure:
    try:
        return call()
    except InputError as error:
        return Failure("failed", error.code, str(error))
    except MemoryError:
        return Failure(
            "failed",
            LimitExceeded.code,
            "the case did not fit the memory that was promised; give more with --max-ram, or fewer --workers",
        )
    except MedaeError:
        raise  # the call is wrong or the disk is full: the next case would end the same way
    except Exception as error:  # a fault of ours must not cost a night's other cases; the log says where it was
        logger.exception("a fault of medae at one item of the batch")
        return Failure(
            "fault", "fault", f"a fault of medae ({type(error).__name__}), not of this input; the log says where"
        )


def _outcome(
    item: Item,
    package: str,
    made: Answer | Failure,
    fingerprint: Fingerprint | None,
    stages: Mapping[str, float],
) -> Outcome:
    same = {"package": package, "fingerprint": fingerprint, "stages": stages}
    if isinstance(made, Failure):
        return Outcome(item, made.status, code=made.code, reason=made.reason, **same)  # type: ignore[arg-type]
    return Outcome(item, "done", summary=made.summary, kept=made.kept, vector=made.vector, **same)  # type: ignore[arg-type]
