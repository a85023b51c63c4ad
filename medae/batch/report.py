"""What report.html of a batch shows: read from the table of results; a few cases are answered again for pictures."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medae import answers
from medae.batch import results
from medae.batch.folder import Folder, taken
from medae.batch.item import Item
from medae.batch.plan import Plan
from medae.batch.settings import BatchSettings, Model
from medae.batch.work import STAGES, decode
from medae.errors import InputError
from medae.image import Image
from medae.io import write_files
from medae.predictor import Predictor
from medae.report.batch import Failures, ModelPart, Remarkable, Stage, batch_file
from medae.report.gallery import picture_panel
from medae.tasks import Anomaly

logger = logging.getLogger(__name__)

SHOWN = 4
"""Cases at either end of the scores."""
PICTURE_SECONDS = 120.0
"""What answering them again may cost; slower cases are named without a picture."""
NAMED = 5


def write(folder: Folder, plan: Plan, models: Sequence[Model], settings: BatchSettings, counts: results.Counts) -> None:
    """report.html in the output folder. Raises OutputError."""
    table = results.read(folder)
    parts = [_part(table, plan, model, settings) for model in models]
    each = {name: getattr(counts, name) for name in ("total", "done", "failed", "fault", "left")}
    with taken():
        write_files([batch_file(parts, each, _failures(table), _stages(table))], folder.out)


def _part(table: Any, plan: Plan, model: Model, settings: BatchSettings) -> ModelPart:
    card = model.package.card
    if model.embeds:
        return _embedded(table, model)
    mine = (pc.field("package") == model.name) & (pc.field("status") == "done")
    score = _headline(table, model, mine)
    names = [
        "id",
        "p_value",
        "p_adjusted",
        "gate",
        *(f"seconds_{stage}" for stage in STAGES),
        *([score] if score else []),
    ]
    rows = table.to_table(columns=names, filter=mine)
    values = _numbers(rows, score) if score else np.empty(0)
    order = np.argsort(values, kind="stable")[: np.count_nonzero(np.isfinite(values))]
    adjusted = _numbers(rows, "p_adjusted")
    calibrated = np.isfinite(adjusted).any()
    ends = (order[::-1][:SHOWN], order[:SHOWN] if len(order) >= 2 * SHOWN else order[:0])
    shown = _shown(rows, np.concatenate(ends), plan, model, settings, score)
    return ModelPart(
        name=model.name,
        version=card.version,
        digest=model.package.digest,
        task=card.task.kind,
        score=score or "score",
        values=values[np.isfinite(values)],
        p_values=(p := _numbers(rows, "p_value"))[np.isfinite(p)],
        discoveries=int(np.count_nonzero(adjusted <= 0.05)) if calibrated else None,
        gate=Counter(verdict for verdict in rows["gate"].to_pylist() if verdict),
        highest=[shown[at] for at in ends[0].tolist() if at in shown],
        lowest=[shown[at] for at in ends[1].tolist() if at in shown],
    )


def _embedded(table: Any, model: Model) -> ModelPart:
    mine = (pc.field("package") == model.name) & (pc.field("status") == "done")
    rows = table.to_table(columns=["id"], filter=mine)
    widths = table.head(1, columns=["vector"], filter=mine)["vector"].to_pylist()
    card = model.package.card
    return ModelPart(
        name=model.name,
        version=card.version,
        digest=model.package.digest,
        task="embedding",
        vectors=(len(rows), len(widths[0]) if widths else 0),
    )


def _headline(table: Any, model: Model, mine: Any) -> str | None:
    """The calibrated score, or the first that the model has."""
    task, calibration = model.package.card.task, model.package.calibration
    if calibration is not None and calibration.score in table.schema.names:
        return calibration.score
    if isinstance(task, Anomaly) and task.score_name in table.schema.names:
        return task.score_name
    names = table.schema.names
    scores = names[names.index("status") + 1 : names.index("percentile")]
    return next((name for name in scores if table.count_rows(filter=mine & pc.field(name).is_valid())), None)


def _numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = rows[name].to_numpy().astype(float)
    return values


def _shown(
    rows: pa.Table, wanted: NDArray[np.int64], plan: Plan, model: Model, settings: BatchSettings, score: str | None
) -> dict[int, Remarkable]:
    """By row; what cannot be read any more, or would take too long, is left out."""
    if not len(wanted):
        return {}
    chosen = rows.take(pa.array(wanted)).to_pylist()
    ids = plan.ids()
    items = {
        item.id: item for item in plan.items(np.asarray(pc.is_in(ids, value_set=pa.array([r["id"] for r in chosen]))))
    }
    predictor = Predictor(model.package, device=settings.device)
    left = PICTURE_SECONDS
    found: dict[int, Remarkable] = {}
    for at, row in zip(wanted.tolist(), chosen, strict=True):
        left -= sum(row[f"seconds_{stage}"] or 0 for stage in STAGES)
        if left < 0:
            break
        if at not in found and (panel := _picture(items[row["id"]], predictor, settings)) is not None:
            found[at] = Remarkable(row["id"], _said(row, score), panel)
    return found


def _said(row: Mapping[str, Any], score: str | None) -> str:
    said = f"{score} {row[score]:.4g}" if score else ""
    return said + (f", p {row['p_value']:.3g}" if row["p_value"] is not None else "")


def _picture(item: Item, predictor: Predictor, settings: BatchSettings) -> Any:
    image = decode(item, allow=settings.allow).image
    if not isinstance(image, Image):
        return None
    try:
        prediction = predictor(image, threshold=settings.threshold)
    except InputError:
        return None
    return picture_panel("the answer on the image", answers.overlay(prediction, predictor.package, image))


def _failures(table: Any) -> list[Failures]:
    rows = table.to_table(columns=["id", "code", "reason"], filter=pc.field("status") != "done")
    counts = Counter(rows["code"].to_pylist())
    found = []
    for code, count in counts.most_common():
        mine = rows.filter(pc.equal(rows["code"], code)).slice(0, NAMED).to_pylist()
        found.append(Failures(code, count, mine[0]["reason"], [row["id"] for row in mine]))
    return found


def _stages(table: Any) -> list[Stage]:
    rows = table.to_table(columns=[f"seconds_{stage}" for stage in STAGES])
    found = []
    for stage in STAGES:
        column = rows[f"seconds_{stage}"]
        cases = len(column) - column.null_count
        if cases:
            found.append(Stage(stage, pc.sum(column).as_py(), cases))
    return found
