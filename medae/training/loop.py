"""The training loop, to be read from top to bottom.

Every random draw is a function of (seed, step) or (seed, epoch, index), so that a resumed training needs no saved
generator and gives, on one machine, the same weights to the bit, with any number of loader workers.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from lightning_fabric import Fabric
from torch import Tensor

from medae.backends.torch import choose_device
from medae.errors import OutputError, TrainingError
from medae.evaluation import headline
from medae.experiment import Experiment, TrainingSettings
from medae.io.answer import AnswerFile, write_files
from medae.networks import StackedAutoencoder
from medae.networks import run as run_network
from medae.objectives import Loss
from medae.package import ModelPackage
from medae.record import now, recording
from medae.training.layer_wise import Phase, phase_at, stage_loss
from medae.training.log import NAME as METRICS
from medae.training.log import Log
from medae.training.material import Batch, Material, batches_from, pair, read_material, seed_of
from medae.training.pictures import strip
from medae.training.prior import with_prior
from medae.training.state import LAST, PACKAGE, State, layout_on
from medae.training.stopping import Stop
from medae.training.validation import finished, validate, with_metrics

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """All that one training works with; only its state changes."""

    experiment: Experiment
    out: Path
    material: Material
    device: torch.device
    fabric: Fabric
    loss: Loss
    log: Log
    stop: Stop
    state: State
    started: float
    """On the monotonic clock; moves when the state takes up the time."""
    validation_seconds: float = 0.0
    """Of the last validation: the time limit leaves room for one more."""

    @property
    def settings(self) -> TrainingSettings:
        return self.experiment.training

    @property
    def seconds(self) -> float:
        """Spent on this training, over all resumed runs."""
        return self.state.seconds + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """0..1: of the steps or, where it runs ahead of them, of the time limit."""
        done, minutes = self.state.step / self.settings.steps, self.settings.time_limit_minutes
        if minutes is None:
            return done
        room = max(60 * minutes - self.validation_seconds, 1e-9)
        return min(1.0, max(done, self.seconds / room))

    @property
    def phase(self) -> Phase:
        """Which stages are trained now."""
        share, network = self.settings.layer_wise, self.state.network
        stages = len(network.stages) if isinstance(network, StackedAutoencoder) else 0
        return phase_at(self.progress, share if stages else 0, stages)


def train(experiment: Experiment, out: Path, *, resume: bool = False, progress: bool | None = None) -> ModelPackage:
    """The package of one training, as `medae.train` describes it, without the gate that its experiment may ask for."""
    begun, started, device = now(), time.monotonic(), choose_device(experiment.training.device)
    with _environment(experiment, device):
        state = _state_in(out, experiment, device, resume=resume)
        if state.finished:
            return ModelPackage.load(out / PACKAGE)
        with recording(out, "train", seed=experiment.training.seed) as run, Stop() as stop:
            run.started = begun
            _write_experiment(experiment, out)
            material = read_material(experiment, run)
            fabric, loss = _fabric(experiment.training, device), Loss(experiment.objectives).to(device)
            with _log(experiment, out, state, progress) as log:
                package = _fit(Training(experiment, out, material, device, fabric, loss, log, stop, state, started))
            run.digests["package"] = package.digest
            run.facts |= {"steps": state.step, "best_step": state.best_step, "seconds": round(state.seconds, 1)}
    return package


def _fit(training: Training) -> ModelPackage:
    state = training.state
    batches = batches_from(training.material.train, training.experiment, state.step, pin=training.device.type == "cuda")
    _validate_if_due(training)  # of a training that was stopped between a step and its validation
    for batch in batches:
        if _ends(training):
            break
        _step(training, batch)
        _validate_if_due(training)
    if not training.stop.asked and state.validated < state.step:
        _validate(training)
    if training.stop.asked:
        _save(training)
        training.log.said(f"stopped after step {state.step}; --resume goes on from there")
        training.stop.obey()
    return _finish(training)


def _ends(training: Training) -> bool:
    state, patience = training.state, training.settings.early_stopping
    if patience is not None and state.stale >= patience:
        training.log.said(f"early stop: no better validation since step {state.best_step}")
        return True
    return training.stop.asked or (training.progress >= 1 and state.step > 0)


def _step(training: Training, batch: Batch) -> None:
    state, settings, phase = training.state, training.settings, training.phase
    rate = learning_rate(settings, phase.progress)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed(seed_of(settings.seed, state.step, 0))
    noise = torch.Generator(training.device).manual_seed(seed_of(settings.seed, state.step, 1))
    here = {name: values.to(training.device, non_blocking=True) for name, values in batch.items()}
    x, target = pair(here, training.experiment, noise)

    state.network.train()
    total, terms = _loss(training, phase.stage, x.to(memory_format=layout_on(training.device, x.ndim)), target)
    state.optimizer.zero_grad()
    training.fabric.backward(total)
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip or math.inf)
    # one transfer from the device for all numbers
    values = dict(zip(["loss", *terms, "gradient"], torch.stack([total, *terms.values(), norm]).tolist(), strict=True))
    _require_numbers(values, state)
    state.optimizer.step()
    if state.averaged is not None:
        state.averaged.update_parameters(state.network)
    state.step += 1
    training.log.trained(state.step, values, rate, training.seconds)


def _loss(training: Training, stage: int | None, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The total, and by name its terms and what the latent reports; of one stage where only that is trained."""
    network, fabric = training.state.network, training.fabric
    if stage is not None and isinstance(network, StackedAutoencoder):
        with fabric.autocast():
            total = stage_loss(network, stage, x, target)
        return total, {f"stage_{stage + 1}": total.detach()}
    with fabric.autocast():
        output = run_network(network, x)
    total, terms = training.loss(output, target, training.progress)
    return total, terms | (output.latent.numbers() if output.latent is not None else {})


def learning_rate(settings: TrainingSettings, progress: float) -> float:
    """At `progress` 0..1: a linear rise over the warm-up, then half a cosine down to zero."""
    if progress < settings.warm_up:
        return settings.learning_rate * min(1.0, (progress + 1 / settings.steps) / settings.warm_up)
    after = (progress - settings.warm_up) / (1 - settings.warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * after))


def _require_numbers(values: Mapping[str, float], state: State) -> None:
    """Before the weights are touched. The terms come first: the total only repeats what they say."""
    for name in sorted(values, key=lambda name: name in ("loss", "gradient")):
        if not math.isfinite(values[name]):
            what = f"the {name}" if name in ("loss", "gradient") else f"the loss term {name}"
            kept = (
                f"package/ keeps the best weights (step {state.best_step})" if state.best_step else "nothing was kept"
            )
            raise TrainingError(
                f"{what} is {values[name]} at step {state.step + 1}; {kept}. Lower training.learning_rate or set "
                "training.gradient_clip, and look at the training images' values."
            )


def _validate_if_due(training: Training) -> None:
    state = training.state
    if state.step % training.settings.validate_every == 0 and state.validated < state.step:
        _validate(training)


def _validate(training: Training) -> None:
    """Measure the weights as they are; when they are the best so far, they become the package."""
    state, experiment, begun = training.state, training.experiment, time.monotonic()
    found = validate(state.served, experiment, training.material.validation, training.device, training.stop)
    if found is None:
        return
    best = found.better_than(state.best, experiment)
    if best:
        state.best, state.best_step, state.stale = found.value, state.step, 0
        with_metrics(found, experiment, state.step).save(training.out / PACKAGE)
    elif training.phase.stage is None:  # before, a network half of which is untrained is no measure
        state.stale += 1
    if found.shown:
        name = f"pictures/step-{state.step:06d}.png"
        write_files([strip([measured.images for measured in found.shown], experiment.task, name)], training.out)
    state.validated = state.step
    training.log.validated(
        state.step, found.summary, headline(experiment.task).name, best=best, seconds=training.seconds
    )
    _save(training)
    training.validation_seconds = time.monotonic() - begun


def _save(training: Training) -> None:
    state, now = training.state, time.monotonic()
    state.seconds, training.started = state.seconds + now - training.started, now
    state.save(training.out, training.experiment)


def _finish(training: Training) -> ModelPackage:
    if training.state.best is None:
        raise TrainingError(
            f"no validation gave a number for {headline(training.experiment.task).name}; "
            "run.json and metrics.jsonl say what became of each case"
        )
    best = ModelPackage.load(training.out / PACKAGE)
    package = _with_prior(training, best)  # first: a score may ask it
    package = finished(package, training.experiment)
    if package is not best:
        package.save(training.out / PACKAGE)
    training.state.finished = True
    _save(training)
    return package


def _with_prior(training: Training, package: ModelPackage) -> ModelPackage:
    """With the prior that the experiment asks for. A training that is stopped here begins it again when resumed."""
    if training.experiment.prior is None:
        return package
    steps = training.experiment.prior.steps

    def watch(step: int, bits: float) -> None:
        training.log.said(f"prior: step {step}/{steps}  {bits:.3f} bits a code")
        if training.stop.asked:
            _save(training)
            training.stop.obey()

    return with_prior(package, training.experiment, watch=watch)


def _state_in(out: Path, experiment: Experiment, device: torch.device, *, resume: bool) -> State:
    state = State.fresh(experiment, device)
    if resume:
        state.restore(out, experiment)
        return state
    there = [name for name in (PACKAGE, LAST, METRICS) if (out / name).exists()]
    if there:
        raise OutputError(
            f"the output folder holds a training already ({', '.join(there)}): go on with --resume, or give another one"
        )
    return state


def _write_experiment(experiment: Experiment, out: Path) -> None:
    text = yaml.safe_dump(experiment.resolved, sort_keys=False, allow_unicode=True)
    write_files([AnswerFile("experiment.yaml", "application/yaml", text.encode())], out)


def _log(experiment: Experiment, out: Path, state: State, progress: bool | None) -> Log:
    settings = experiment.training
    return Log(out, step=state.step, steps=settings.steps, every=settings.log_every, progress=progress)


def _fabric(settings: TrainingSettings, device: torch.device) -> Fabric:
    cuda = device.type == "cuda"
    mixed = settings.precision == "bf16" or (settings.precision == "auto" and cuda)
    return Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if cuda else 1,
        precision="bf16-mixed" if mixed else "32-true",
    )


@contextmanager
def _environment(experiment: Experiment, device: torch.device) -> Iterator[None]:
    """Torch's process-wide switches as this training needs them; as they were, afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        if cuda:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
            torch.use_deterministic_algorithms(True, warn_only=True)
        if experiment.training.threads is not None:
            torch.set_num_threads(experiment.training.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
