"""Questions to the service: a path, parameters and a form."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from medae.client.answer import ZIP
from medae.client.form import TASKS, Form, Source, Task, parts_of
from medae.errors import UsageError

if TYPE_CHECKING:
    from medae.answers import Output
    from medae.io.dicom_options import DicomAnswers
    from medae.verdict import GateLimits

GATED = ("segment", "restore", "denoise")
"""Anomaly models have no gate."""


@dataclass(frozen=True)
class Question:
    path: str
    form: Form | None = None
    params: Mapping[str, str] = field(default_factory=dict)

    gated: bool = False
    """Whether a gate may have something to say of it."""

    def options(self, gate: Mapping[str, str]) -> dict[str, Any]:
        """For httpx's `stream`, apart from the body. gate: parameters for what a gate looks at."""
        if self.form is None:
            return {"method": "GET", "url": self.path}
        headers = {**self.form.headers, "Accept": ZIP}
        params = {**self.params, **(gate if self.gated else {})}
        return {"method": "POST", "url": self.path, "params": params, "headers": headers}


class Reading(TypedDict, total=False):
    """How several DICOM files become one image, as medae.read_image takes it."""

    series: int | str
    """Of several, by its number in the list of a refusal, or by its SeriesInstanceUID."""
    regular_grid: bool
    """Make uneven slices even, and those of a tilted gantry upright."""


def _params(
    task: Task,
    model: str | None,
    output: "Output",
    threshold: float | None,
    dicom: "DicomAnswers | None",
    reading: Reading,
) -> dict[str, str]:
    """Raises UsageError for an unknown task; the service checks the rest."""
    if task not in TASKS:
        raise UsageError(f"a service is asked to {', '.join(TASKS)}")
    regular_grid = "true" if reading.get("regular_grid") else None
    given = {"model": model, "output": output, "threshold": threshold}
    given |= {"series": reading.get("series"), "regular_grid": regular_grid}
    words = {f"dicom_{name}": text for name, text in dicom.texts().items()} if dicom else {}
    return {name: str(value) for name, value in given.items() if value not in (None, "default")} | words


def gate_params(limits: "GateLimits | None") -> dict[str, str]:
    """Limits of a gate as parameters; None: none, the service's are taken."""
    return {} if limits is None else {f"gate_{name}": str(rate) for name, rate in limits.model_dump().items()}


def ask(
    task: Task,
    source: Source,
    model: str | None,
    output: "Output",
    threshold: float | None,
    dicom: "DicomAnswers | None",
    **reading: Unpack[Reading],
) -> Question:
    params = _params(task, model, output, threshold, dicom, reading)
    return Question(f"/v1/{task}", Form(parts_of(source)), params, gated=task in GATED)


def ask_each(
    task: Task,
    sources: Iterable[Source],
    model: str | None,
    output: "Output",
    threshold: float | None,
    dicom: "DicomAnswers | None",
) -> Question:
    """Raises UsageError also for an image of several files: in one request, each file is an image."""
    parts = [parts_of(source) for source in sources]
    if any(len(files) != 1 for files in parts):
        raise UsageError("in one request each image is one file; ask `many` for series")
    params = _params(task, model, output, threshold, dicom, {})
    return Question(f"/v1/tiles/{task}", Form([part for (part,) in parts]), params, gated=task in GATED)
