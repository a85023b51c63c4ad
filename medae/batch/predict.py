"""`medae predict`: the local engine in this process, answers straight into their places, results.csv and run.json."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medae import record
from medae.batch.folder import require_writable
from medae.batch.item import Item
from medae.batch.local import Inline
from medae.batch.work import Direct, Hand, Outcome
from medae.io.answer import AnswerFile, write_files
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers
from medae.predictor import Predictor
from medae.pseudonyms import Pseudonyms

COLUMNS = ("id", "status", "input", "decision", "percentile", "p_value", "gate", "outputs", "seconds", "code", "reason")

Watch = Callable[[Outcome], None]
"""Called after each item."""


def predict_items(
    predictor: Predictor,
    items: Sequence[Item],
    out: Path,
    *,
    output: str = "default",
    threshold: float | None = None,
    dicom: DicomAnswers = DEFAULT_DICOM,
    pseudonyms: Pseudonyms | None = None,
    watch: Watch = lambda outcome: None,
) -> list[Outcome]:
    """Answer each item below `out`: its files, its summary, a line in results.csv; run.json says what ran.

    pseudonyms: for de-identified answers; results.csv then has no paths, as ids are keyed hashes.
    A bad input fails alone. results.csv and run.json are written even when the run is stopped half-way.
    Raises OutputError as soon as answers cannot be written, UsageError for an output or threshold that the model
    does not know.
    """
    require_writable(out)
    name = predictor.package.card.name
    hand = Hand({name: predictor}, Direct(out), output=output, threshold=threshold, dicom=dicom, pseudonyms=pseudonyms)
    outcomes: list[Outcome] = []
    with record.recording(out, "predict", digests={"package": predictor.package.digest}) as run:
        run.facts |= {"output": output, "threshold": threshold, "dicom": dicom.texts()}
        run.facts |= predictor.package.calibrations
        try:
            for (outcome,) in Inline(hand).run(iter(items)):
                outcomes.append(outcome)
                _note(run, outcome)
                watch(outcome)
        finally:
            write_files([_results(outcomes, pseudonyms is None)], out)
    return outcomes


def _note(run: record.Run, outcome: Outcome) -> None:
    if outcome.status == "done":
        run.done(outcome.item.id)
    else:
        run.failed(outcome.item.id, outcome.reason, code=outcome.code)


def _results(outcomes: Sequence[Outcome], with_paths: bool) -> AnswerFile:
    """results.csv: a line an item; the names of its scores stand between the fixed columns."""
    scores = sorted({name for outcome in outcomes for name in outcome.summary.get("scores", {})})
    text = io.StringIO()
    table = csv.DictWriter(text, [*COLUMNS[:3], *scores, *COLUMNS[3:]], restval="")
    table.writeheader()
    table.writerows(_row(outcome) | ({} if with_paths else {"input": ""}) for outcome in outcomes)
    # a file's name may hold bytes that are no text
    return AnswerFile("results.csv", "text/csv", text.getvalue().encode(errors="backslashreplace"))


def _row(outcome: Outcome) -> dict[str, Any]:
    summary, files = outcome.summary, outcome.item.files
    gate = summary.get("gate")
    first = files[0]
    return {
        "id": outcome.item.id,
        "status": outcome.status,
        "input": first.parent if isinstance(first, Path) and len(files) > 1 else first,
        **summary.get("scores", {}),
        **{name: summary.get(name) for name in ("decision", "percentile", "p_value")},
        "gate": gate["verdict"] if gate else None,
        "outputs": " ".join(file["name"] for file in summary.get("files", ())),
        "seconds": f"{outcome.seconds:.3f}",
        "code": outcome.code,
        "reason": outcome.reason,
    }
