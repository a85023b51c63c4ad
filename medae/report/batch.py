"""report.html of a batch: how its scores lie, its most and least remarkable images, what failed, what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae import record
from medae.io.answer import AnswerFile
from medae.report import charts
from medae.report.gallery import Panel

__all__ = ["Failures", "ModelPart", "Stage", "batch_file"]


class Remarkable(NamedTuple):
    """One case in a picture."""

    id: str
    said: str
    """Its score and where that lies."""
    panel: Panel


class Stage(NamedTuple):
    """One stage of the work, over all cases."""

    name: str
    seconds: float
    cases: int

    @property
    def rate(self) -> float:
        """Cases a second of one process that did nothing else."""
        return self.cases / self.seconds if self.seconds > 0 else float("inf")


class Failures(NamedTuple):
    """Cases that failed for one reason."""

    code: str
    cases: int
    reason: str
    """Of one of them."""
    ids: Sequence[str]
    """Of the first few."""


@dataclass(frozen=True)
class ModelPart:
    """What one model of the batch said."""

    name: str
    version: str
    digest: str
    task: str
    score: str = "score"
    """The score that the cases are ordered by."""
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """That score of each case that has one."""
    p_values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Where the model is calibrated."""
    discoveries: int | None = None
    """Cases whose Benjamini-Hochberg p-value is at most 0.05; None without p-values."""
    gate: Mapping[str, int] = field(default_factory=dict)
    """Cases by verdict."""
    highest: Sequence[Remarkable] = ()
    lowest: Sequence[Remarkable] = ()
    vectors: tuple[int, int] | None = None
    """Of a model that embeds: how many, and of how many numbers each."""


def batch_file(
    models: Sequence[ModelPart], counts: Mapping[str, int], failures: Sequence[Failures], stages: Sequence[Stage]
) -> AnswerFile:
    """The page: one file, no scripts, nothing loaded from anywhere; it shows images, so it is to be kept as they are.

    counts: total, done, failed, fault, left.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = template.get_template("batch.html").render(
        models=[(model, _charts(model)) for model in models],
        counts=counts,
        failures=failures,
        stages=stages,
        seconds=sum(stage.seconds for stage in stages),
        binding=max(stages, key=lambda stage: stage.seconds).name if stages else "",
        written=record.now().isoformat(),
        versions=", ".join(f"{name} {version}" for name, version in record.versions().items()),
    )
    return AnswerFile("report.html", "text/html", page.encode())


def _charts(model: ModelPart) -> list[charts.Chart]:
    found = []
    if len(model.values) > 1:
        found.append(
            charts.histogram(
                model.values, f"{model.score} of each case", "How the scores lie; a far tail is worth a look."
            )
        )
    if len(model.p_values) > 1:
        said = "p-values: even where the cases are like the reference images; a heap at 0 is what is not."
        found.append(charts.histogram(model.p_values, "p-value of each case", said, (0.0, 1.0)))
    return found
