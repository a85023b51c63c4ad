"""The local engine of a batch: one item after the other, each answered or named with its reason, in one process."""

import csv
import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medae import answers, record
from medae.batch.manifest import Item
from medae.errors import InputError, MedaeError, OutputError
from medae.io import read_image
from medae.io.answer import AnswerFile, write_files
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers
from medae.predictor import Predictor, check_call

logger = logging.getLogger(__name__)

COLUMNS = ("id", "status", "input", "decision", "percentile", "p_value", "gate", "outputs", "seconds", "code", "reason")


@dataclass(frozen=True)
class Outcome:
    """What became of one item."""

    item: Item
    status: Literal["done", "failed", "fault"]
    """failed: the input is at fault, `reason` says how; fault: medae is, the log says where."""
    seconds: float
    summary: Mapping[str, Any] = field(default_factory=dict)
    """The summary JSON of a done item."""
    code: str = ""
    reason: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """A line of results.csv; each score of the summary is a column of its own."""
        gate = self.summary.get("gate")
        return {
            "id": self.item.id,
            "status": self.status,
            "input": self.item.files[0] if len(self.item.files) == 1 else self.item.files[0].parent,
            **self.summary.get("scores", {}),
            **{name: self.summary.get(name) for name in ("decision", "percentile", "p_value")},
            "gate": gate["verdict"] if gate else None,
            "outputs": " ".join(file["name"] for file in self.summary.get("files", ())),
            "seconds": f"{self.seconds:.3f}",
            "code": self.code,
            "reason": self.reason,
        }


Watch = Callable[[Outcome], None]
"""Called after each item."""


def require_writable(out: Path) -> None:
    """Make the output folder. Raises OutputError where nothing can be written, before any work is done for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise OutputError(f"the output folder cannot be written ({reason}); give another one with --out") from None


def predict_items(
    predictor: Predictor,
    items: Sequence[Item],
    out: Path,
    *,
    output: str = "default",
    threshold: float | None = None,
    dicom: DicomAnswers = DEFAULT_DICOM,
    watch: Watch = lambda outcome: None,
) -> list[Outcome]:
    """Answer each item below `out`: its files, its summary, a line in results.csv; run.json says what ran.

    A bad input fails alone. results.csv and run.json are written even when the run is stopped half-way.
    Raises OutputError as soon as answers cannot be written, UsageError for an output or threshold that the model
    does not know.
    """
    require_writable(out)
    answers.check_output(output, predictor.package)
    answers.check_dicom(dicom, predictor.package)
    check_call(predictor.package, threshold=threshold)
    outcomes: list[Outcome] = []
    with record.recording(out, "predict", digests={"package": predictor.package.digest}) as run:
        run.facts |= {"output": output, "threshold": threshold, "dicom": dicom.texts()}
        try:
            for item in items:
                outcomes.append(_predict(predictor, item, out, output, threshold, dicom))
                _note(run, outcomes[-1])
                watch(outcomes[-1])
        finally:
            write_files([_results(outcomes)], out)
    return outcomes


def _predict(
    predictor: Predictor, item: Item, out: Path, output: str, threshold: float | None, dicom: DicomAnswers
) -> Outcome:
    start = time.perf_counter()
    try:
        summary = _answer(predictor, item, out, output, threshold, dicom)
    except InputError as error:
        return Outcome(item, "failed", time.perf_counter() - start, code=error.code, reason=str(error))
    except MedaeError:
        raise  # the call is wrong or the disk is full: the next item would end the same way
    except Exception as error:  # a fault of ours must not cost a night's other items; the log says where it was
        logger.exception("a fault of medae at one item of the batch")
        reason = f"a fault of medae ({type(error).__name__}), not of this input; the log says where"
        return Outcome(item, "fault", time.perf_counter() - start, code="fault", reason=reason)
    return Outcome(item, "done", time.perf_counter() - start, summary)


def _answer(
    predictor: Predictor, item: Item, out: Path, output: str, threshold: float | None, dicom: DicomAnswers
) -> dict[str, Any]:
    """Writes the answer's files and its summary; returns the summary."""
    image = read_image(item.files if len(item.files) > 1 else item.files[0])
    prediction = predictor(image, threshold=threshold, probabilities=output == "probabilities")
    made = answers.answer_files(prediction, predictor.package, stem=item.id, original=image, output=output, dicom=dicom)
    files = [file for file in made if file.media_type != "application/json"]  # each item has a summary, once
    write_files([answers.summary_file(prediction, stem=item.id, files=files), *files], out)
    return answers.summary(prediction, id=item.id, files=files)


def _note(run: record.Run, outcome: Outcome) -> None:
    if outcome.status == "done":
        run.done(outcome.item.id)
    else:
        run.failed(outcome.item.id, outcome.reason, code=outcome.code)


def _results(outcomes: Sequence[Outcome]) -> AnswerFile:
    """results.csv: a line an item; the names of its scores stand between the fixed columns."""
    rows = [outcome.row for outcome in outcomes]
    scores = sorted({name for outcome in outcomes for name in outcome.summary.get("scores", {})})
    text = io.StringIO()
    table = csv.DictWriter(text, [*COLUMNS[:3], *scores, *COLUMNS[3:]], restval="")
    table.writeheader()
    table.writerows(rows)
    # a file's name may hold bytes that are no text
    return AnswerFile("results.csv", "text/csv", text.getvalue().encode(errors="backslashreplace"))
