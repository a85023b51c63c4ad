"""The curves of a report, as SVG in data URIs."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.metrics.detection import NORMAL
from medae.metrics.selection import doubts_of, risk_coverage, risk_of
from medae.report.gallery import Row, kind_of
from medae.tasks import Anomaly, Restoration, Segmentation, TaskConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# told apart by people with any colour vision (Okabe and Ito 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8a8f98"
_STYLE: Any = {
    "svg.fonttype": "path",  # looks the same on every machine
    "svg.hashsalt": "medae",  # the same numbers give the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
}


class Chart(NamedTuple):
    """One figure and the sentence below it."""

    caption: str
    data_uri: str


def of_task(task: TaskConfig, rows: Sequence[Row]) -> list[Chart]:
    """What can be drawn of these cases; one case alone is no curve."""
    if len(rows) < 2:
        return []
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        if isinstance(task, Segmentation):
            return [_overlaps(rows, [label.name for label in task.labels]), *_selection(rows)]
        if isinstance(task, Restoration):
            return [*_gains(rows), *_selection(rows)]
        return _detection(task, rows)


def histogram(values: NDArray[np.float64], label: str, caption: str, ends: tuple[float, float] | None = None) -> Chart:
    """How many of the values lie where. ends: of the axis; by default the values' own."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = _figure(6.4, 2.6)
        axes = figure.subplots()
        axes.hist(values, bins=min(60, max(5, round(len(values) ** 0.5))), range=ends, color=COLOURS[0])
        axes.set(xlabel=label, ylabel="cases")
        return Chart(caption, _svg(figure))


def _overlaps(rows: Sequence[Row], labels: Sequence[str]) -> Chart:
    names = [f"dice_{label}" for label in labels] if len(labels) > 1 else ["dice"]
    figure = _figure(6.4, 0.9 + 0.55 * len(names))
    axes = figure.subplots()
    each = [_column(rows, name) for name in names]
    _spread(axes, each, list(labels))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Dice of each case; the bar is the median")
    return Chart("How the cases lie: a tail to the left is a kind of case that the model does not know.", _svg(figure))


def _gains(rows: Sequence[Row]) -> list[Chart]:
    charts = []
    for name, unit in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        before, after = (_pairs(rows, name, f"{name}_input")[:, column] for column in (1, 0))
        if len(before) < 2:
            continue
        figure = _figure(3.6, 3.3)
        axes = figure.subplots()
        low, high = min(before.min(), after.min()), max(before.max(), after.max())
        margin = 0.05 * (high - low or 1)
        ends = [low - margin, high + margin]
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":")
        axes.plot(before, after, "o", color=COLOURS[0], markersize=5, alpha=0.7, markeredgewidth=0)
        axes.set(xlim=ends, ylim=ends, xlabel=f"input ({unit})", ylabel=f"answer ({unit})", aspect="equal")
        charts.append(Chart("One dot a case; above the dotted line the answer is better than the input.", _svg(figure)))
    return charts


def _selection(rows: Sequence[Row]) -> list[Chart]:
    """Risk over coverage for each doubt; nothing where there is none."""
    cases = [row.values for row in rows]
    names = doubts_of(cases)
    if not names:
        return []
    figure = _figure(4.6, 3.3)
    axes = figure.subplots()
    for colour, name in zip(COLOURS, names, strict=False):
        known = [values for values in cases if name in values]
        curve = risk_coverage([values[name] for values in known], [risk_of(values) for values in known])
        axes.plot(curve.coverage, curve.risk, color=colour, label=f"{name} ({curve.area:.3g})", drawstyle="steps-post")
    axes.axhline(float(np.mean([risk_of(values) for values in cases])), color=GREY, linewidth=1, linestyle=":")
    what = "1 - Dice" if "dice" in cases[0] else "mean squared error"
    axes.set(xlim=(0, 1.01), xlabel="part of the cases that is kept, the surest first", ylabel=f"mean {what}")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    caption = (
        "Risk and coverage: how good the answers are that remain when the most doubtful go to a person. The lower "
        "the better (area in brackets); the dotted line is a doubt that says nothing."
    )
    return [Chart(caption, _svg(figure))]


def _detection(task: Anomaly, rows: Sequence[Row]) -> list[Chart]:
    kinds = sorted({str(row.label) for row in rows if row.label is not None} - {NORMAL})
    unlabelled = [row for row in rows if row.label is None]
    names = [NORMAL, *kinds]
    each = [_column([row for row in rows if row.label == name], task.score_name) for name in names]
    if unlabelled:
        names, each = [*names, "no label"], [*each, _column(unlabelled, task.score_name)]
    shown = [(name, values) for name, values in zip(names, each, strict=True) if len(values)]
    figure = _figure(6.4, 0.9 + 0.45 * len(shown))
    axes = figure.subplots()
    _spread(axes, [values for _, values in shown], [name for name, _ in shown])
    axes.set_xlabel(f"score ({task.score_name}) of each case; the bar is the median")
    charts = [Chart("The scores of each kind: what overlaps with normal cannot be told from it.", _svg(figure))]
    labelled = [row for row in rows if row.label is not None]
    if {kind_of(row) for row in labelled} == {NORMAL, "abnormal"}:
        charts += [_roc(labelled, task.score_name, kinds), _precision_recall(labelled, task.score_name, kinds)]
    return charts


def _roc(rows: Sequence[Row], score: str, kinds: Sequence[str]) -> Chart:
    from sklearn.metrics import roc_auc_score, roc_curve

    figure = _figure(3.6, 4.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for name, colour, width, truth, values in _groups(rows, score, kinds):
        false_positive, true_positive, _ = roc_curve(truth, values)
        label = f"{name} {roc_auc_score(truth, values):.3f}"
        axes.plot(false_positive, true_positive, color=colour, linewidth=width, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="normal images that are called abnormal", ylabel="abnormal images that are found")
    figure.legend(frameon=False, title="AUROC", fontsize=8, loc="outside lower center", ncols=2)
    return Chart("ROC: each point is a threshold that a caller could choose.", _svg(figure))


def _precision_recall(rows: Sequence[Row], score: str, kinds: Sequence[str]) -> Chart:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure = _figure(3.6, 4.4)
    axes = figure.subplots()
    for name, colour, width, truth, values in _groups(rows, score, kinds):
        precision, recall, _ = precision_recall_curve(truth, values)
        label = f"{name} {average_precision_score(truth, values):.3f} ({np.mean(truth):.2f})"
        axes.plot(recall, precision, color=colour, linewidth=width, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="abnormal images that are found", ylabel="alarms that are right")
    figure.legend(frameon=False, title="average precision (by chance)", fontsize=8, loc="outside lower center", ncols=2)
    return Chart("Precision and recall: they depend on how many images of this list are abnormal.", _svg(figure))


def _groups(
    rows: Sequence[Row], score: str, kinds: Sequence[str]
) -> list[tuple[str, str, float, list[bool], NDArray[np.float64]]]:
    """(name, colour, line width, abnormal or not, scores): all together, then each kind against the normal ones."""
    found = []
    for number, kind in enumerate([None, *kinds[: len(COLOURS) - 2]] if len(kinds) > 1 else [None]):
        members = [row for row in rows if kind is None or row.label in (kind, NORMAL)]
        truth = [row.label != NORMAL for row in members]
        colour, width = (COLOURS[-1], 2.0) if kind is None else (COLOURS[number], 1.2)
        found.append((kind or "all", colour, width, truth, np.array([row.values[score] for row in members])))
    return found


def _spread(axes: "Axes", each: Sequence[NDArray[np.float64]], names: Sequence[str]) -> None:
    """One row of dots a name, scattered so that each is seen, and the median."""
    rng = np.random.default_rng(0)
    for at, values in enumerate(each):
        colour = COLOURS[at % len(COLOURS)]
        up = at + rng.uniform(-0.22, 0.22, len(values))
        axes.plot(values, up, "o", color=colour, markersize=4, alpha=0.5, markeredgewidth=0)
        if len(values):
            axes.plot([np.median(values)] * 2, [at - 0.32, at + 0.32], color="#222222", linewidth=2)
    axes.set_yticks(range(len(names)), [f"{name} ({len(values)})" for name, values in zip(names, each, strict=True)])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)


def _column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.array([row.values[name] for row in rows if name in row.values], float)
    return values[np.isfinite(values)]


def _pairs(rows: Sequence[Row], first: str, second: str) -> NDArray[np.float64]:
    values = np.array([[row.values[first], row.values[second]] for row in rows], float).reshape(-1, 2)
    finite: NDArray[np.float64] = values[np.isfinite(values).all(axis=1)]
    return finite


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure") -> str:
    file = BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
