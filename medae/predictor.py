"""Predictor: Image -> Prediction. The one inference path of evaluation, training, command line, service and batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import medae
from medae.backends import Backend, open_backend
from medae.errors import UnfitImage, UsageError
from medae.gate import Gate, doubt_of
from medae.image import Image
from medae.metrics.doubt import OF_SOFT_DICE, SoftDice
from medae.package import Card, ModelPackage
from medae.preparation import Prepared
from medae.tasks import Anomaly, Segmentation, TaskConfig
from medae.tiles import BlendStitcher, CoreStitcher, ReceptiveField, Tile, TilePlan, batches, plan_tiles, read_tile
from medae.verdict import GateLimits, Verdict

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all). May raise, to stop the work between two tiles."""

USUAL = GateLimits()


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image."""

    task: str
    image: Image
    """Labels (uint8/16), the restored image (float32, the input's units) or the anomaly map (float32), (C, S, R, W),
    in the input's place and with its source."""
    scores: dict[str, float]
    provenance: dict[str, Any]
    """Package name, version, digest; versions of its calibration and of those of its gate and model of shapes; medae,
    back end, device, threads."""
    percentile: float | None = None
    """0..100, of the score among the calibration's references."""
    p_value: float | None = None
    decision: str | None = None
    """normal or anomalous, at the caller's false-positive rate; None without one."""
    probabilities: Image | None = None
    """(labels, S, R, W) float32, when asked for."""
    gate: Verdict | None = None
    """Whether the input is one that the model knows; None where the package has no gate."""

    def judged(self, verdict: Verdict, doubts: Mapping[str, float]) -> Self:
        """The same answer with what the gate says of its input, and the doubts that follow from it."""
        return replace(self, gate=verdict, scores={**self.scores, **doubts})


class Predictor:
    """A package made ready to answer."""

    def __init__(
        self,
        package: ModelPackage,
        *,
        backend: Backend | None = None,
        device: str = "auto",
        tile_voxels: int | None = None,
        gated: bool = True,
        soft_dice: bool = False,
        limits: GateLimits = USUAL,
    ) -> None:
        """gated: False leaves the package's gate to the caller. soft_dice: a segmentation says how sure it is, even
        without a gate that needs it. limits: when the gate warns, unless a call says."""
        self.package = package
        self._backend = backend or open_backend(package, device)
        self._tile_voxels = tile_voxels
        self._limits = limits
        self.gate = gate_of(package, device) if gated else None
        """What looks at its inputs; None where there is none."""
        self._soft_dice = soft_dice or (self.gate is not None and self.gate.doubt is not None)

    def __call__(
        self,
        image: Image,
        *,
        threshold: float | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
        gate: GateLimits | None = None,
    ) -> Prediction:
        """Answer for one image; of several volumes for each, the answers stacked as they were.

        The score of several volumes is their mean; of an anomaly model that of the most anomalous one.

        threshold: segmentation: a probability; anomaly: a target false-positive rate. probabilities: segmentation only.
        gate: when the package's gate, if it has one, warns; it never changes the answer.
        Raises UnfitImage for an image the model cannot take, UsageError for a threshold it does not know.
        """
        check_call(self.package, threshold=threshold, probabilities=probabilities)
        if self.gate is None:
            return self._answer(image, threshold, probabilities, progress)
        seen = self.gate.look(image)
        prediction = self._answer(image, threshold, probabilities, progress)
        verdict = self.gate.judge(seen, prediction.image, gate or self._limits)
        return prediction.judged(verdict, self.gate.doubts(seen, prediction.scores))

    def _answer(
        self, image: Image, threshold: float | None, probabilities: bool, progress: Progress | None
    ) -> Prediction:
        if image.volumes > 1:
            return self._by_volume(image, threshold, probabilities, progress)
        card = self.package.card
        prepared = prepare(card, image)
        plan = plan_tiles(prepared.image.geometry.shape, card.receptive_field, self._tile_voxels)
        sure = SoftDice() if self._soft_dice else None
        decided, soft = self._run(prepared.image.pixels, plan, threshold, probabilities, progress, sure)
        answer = card.task.answer(decided, prepared)
        scores = card.task.measure(decided, answer, prepared, self.package.weights)
        if sure is not None:
            scores[OF_SOFT_DICE] = sure.disagreement
        return Prediction(
            task=card.task.kind,
            image=answer,
            scores=scores | self._regions(answer),
            probabilities=None if soft is None else _clipped(prepared.restore(soft)),
            provenance=self.provenance | ({"blended_tiles": True} if plan.blend else {}),
            **self._placed(scores, threshold),
        )

    def _regions(self, answer: Image) -> dict[str, float]:
        """Of an anomaly map, above what normal images have, which the calibration knows."""
        task, calibration = self.package.card.task, self.package.calibration
        if calibration is None or not isinstance(task, Anomaly):
            return {}
        return task.regions(answer, calibration.map_maximum)

    def scores_of(self, pixels_CSRW: NDArray[np.float32]) -> dict[str, float]:
        """An anomaly model's scores of what its network sees: of an image that is prepared already."""
        task, field = self.package.card.task, self.package.card.receptive_field
        assert isinstance(task, Anomaly), "only these have scores"
        plan = plan_tiles(pixels_CSRW.shape[1:], field, self._tile_voxels)
        decided, _ = self._run(pixels_CSRW, plan, None, False, None)
        return task.values(decided, pixels_CSRW, self.package.weights)

    def _by_volume(
        self, image: Image, threshold: float | None, probabilities: bool, progress: Progress | None
    ) -> Prediction:
        def progress_of(number: int) -> Progress | None:
            if progress is None:
                return None
            return lambda done, total: progress(number * total + done, image.volumes * total)

        parts = [self._answer(image.volume(n), threshold, probabilities, progress_of(n)) for n in range(image.volumes)]
        scores = {name: self._of_volumes(name, [part.scores[name] for part in parts]) for name in parts[0].scores}
        soft = [part.probabilities for part in parts if part.probabilities is not None]
        return replace(
            parts[0],
            image=_stacked([part.image for part in parts]),
            scores=scores,
            probabilities=_stacked(soft) if soft else None,
            **self._placed(scores, threshold),
        )

    def _of_volumes(self, name: str, values: Sequence[float]) -> float:
        calibration = self.package.calibration
        if self.package.card.task.kind != "anomaly":
            return fmean(values)
        if calibration is None or name not in calibration.references:
            return max(values)
        return max(values, key=calibration.references[name].unlikeness)  # of two sides, the low one may be it

    @property
    def provenance(self) -> dict[str, Any]:
        """Who answers: enough to make the same answer again."""
        card = self.package.card
        return {
            "package": {"name": card.name, "version": card.version, "digest": self.package.digest},
            **self.package.calibrations,
            "medae": medae.__version__,
            "backend": self._backend.name,
            "device": self._backend.device,
            "threads": self._backend.threads,
        }

    def _run(
        self,
        pixels_CSRW: NDArray[np.float32],
        plan: TilePlan,
        threshold: float | None,
        probabilities: bool,
        progress: Progress | None,
        sure: SoftDice | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """The decided values and, when asked for, the probabilities, on the network's grid. sure: hears of them all."""
        task = self.package.card.task
        soften = task.probabilities if probabilities and isinstance(task, Segmentation) else None
        if plan.blend:
            raw = BlendStitcher(plan, self.package.card.channels_out)
            for tile, _, output in self._tiles(pixels_CSRW, plan, progress):
                raw.write(tile, output)
            output = raw.result()
            labels = task.decide(output, pixels_CSRW, threshold)
            _hear(sure, task, labels, output)
            return labels, soften(output) if soften else None
        decided, soft = CoreStitcher(plan), CoreStitcher(plan)
        for tile, x, output in self._tiles(pixels_CSRW, plan, progress):
            labels = task.decide(output, x, threshold)
            decided.write(tile, labels)
            own = (slice(None), *tile.inside(plan.image))
            _hear(sure, task, labels[own], output[own])
            if soften:
                soft.write(tile, soften(output))
        return decided.result(), soft.result() if soften else None

    def _tiles(
        self, pixels_CSRW: NDArray[np.float32], plan: TilePlan, progress: Progress | None
    ) -> Iterator[tuple[Tile, NDArray[np.float32], NDArray[Any]]]:
        """Each tile with what the network saw and what it gave."""
        done = 0
        for tiles in batches(plan, self._backend.batch):
            inputs = [read_tile(pixels_CSRW, tile.window) for tile in tiles]
            yield from zip(tiles, inputs, self._forward(inputs), strict=True)
            done += len(tiles)
            if progress is not None:
                progress(done, len(plan.tiles))

    def _forward(self, inputs: list[NDArray[np.float32]]) -> NDArray[Any]:
        """(C, S, R, W) tiles -> outputs of the same form; a 2-D network sees the only slice of each."""
        flat = self.package.card.receptive_field.dims == 2
        stack = inputs[0][None] if len(inputs) == 1 else np.stack(inputs)
        output = self._backend.run(stack[:, :, 0] if flat else stack)
        _require_numbers(output)
        return output[:, :, None] if flat else output

    def _placed(self, scores: dict[str, float], threshold: float | None) -> dict[str, Any]:
        """Where the score lies in the calibration, and the decision at the caller's threshold."""
        calibration = self.package.calibration
        if calibration is None or calibration.score not in scores:
            return {}
        score, references = scores[calibration.score], calibration.deciding
        p_value = references.p_value(score)
        decision = None if threshold is None else "anomalous" if p_value <= threshold else "normal"
        return {"percentile": references.percentile(score), "p_value": p_value, "decision": decision}


def gate_of(package: ModelPackage, device: str = "auto") -> Gate | None:
    """The package's gate, ready to look; None where it has none."""
    if package.gate is None:
        return None
    shape = Predictor(package.shape, device=device) if package.shape is not None else None
    return Gate(package, Predictor(package.gate, device=device), shape, doubt_of(package))


def _hear(sure: SoftDice | None, task: TaskConfig, labels: NDArray[Any], output: NDArray[Any]) -> None:
    """Slice by slice, so that the probabilities take no memory to speak of."""
    if sure is None:
        return
    assert isinstance(task, Segmentation), "only these have probabilities"
    for number in range(labels.shape[1]):
        sure.add(labels[0, number], task.probabilities(output[:, number]))


def _stacked(volumes: list[Image]) -> Image:
    pixels = np.concatenate([volume.pixels for volume in volumes])
    return replace(volumes[0], pixels=pixels, volumes=len(volumes))


def check_call(package: ModelPackage, *, threshold: float | None, probabilities: bool = False) -> None:
    """Raises UsageError for what this package cannot be asked; needs no image."""
    task, calibration = package.card.task, package.calibration
    task.check_threshold(threshold)
    if probabilities and not isinstance(task, Segmentation):
        raise UsageError(f"probabilities come from segmentation; this model does {task.kind}")
    if threshold is not None and task.kind == "anomaly":
        if calibration is None:
            raise UsageError("this model has no calibration, so a false-positive rate cannot be turned into a decision")
        calibration.deciding.usual(threshold)


def prepare(card: Card, image: Image) -> Prepared:
    """What the model's network sees of an image. Raises UnfitImage for one that the model cannot take."""
    if card.receptive_field.dims == 3 and image.geometry.shape[0] == 1:  # resampling could make several of it
        raise UnfitImage(
            "this model works on volumes, and this image is a single slice. Send the whole series or volume."
        )
    prepared = card.preparation.apply(image)
    require_size(prepared.image, card.receptive_field)
    return prepared


def require_size(image: Image, field: ReceptiveField) -> None:
    """Raises UnfitImage for another size than the only one, and where the network would see more border than image."""
    shape = image.geometry.shape
    seen = shape if field.dims == 3 else shape[1:]
    if field.window is not None and seen != field.window:
        takes, has = (" x ".join(map(str, size)) for size in (field.window, seen))
        raise UnfitImage(
            f"this model takes images of {takes} only, and this one is {has} on the model's grid. Crop it or scale it, "
            "or choose another model."
        )
    least = max(2, field.stride // 2)
    if min(seen) < least:
        raise UnfitImage(
            f"this image is {' x '.join(map(str, seen))} on the model's grid; the model needs at least {least} "
            "along each axis it looks along. Send a larger image."
        )


def _require_numbers(output: NDArray[Any]) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        total = output.sum()  # one bad value spoils it; a mask as large as the output is not needed
    if not np.isfinite(total):
        raise UnfitImage(
            "the model answered this image with values that are not numbers: the image is too far from what the model "
            "was made for, or the model is not sound"
        )


def _clipped(probabilities: Image) -> Image:
    """Interpolation may leave 0..1 by a rounding error."""
    return probabilities.with_pixels(np.clip(probabilities.pixels, 0, 1))
