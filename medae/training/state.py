"""What a training has reached, and its checkpoint: tensors and plain data, nothing that would run on loading."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medae.errors import SettingsError, TrainingError, UsageError
from medae.experiment import Experiment
from medae.io.answer import AnswerFile, write_files

PACKAGE, LAST = "package", "last.pt"
"""What a training leaves, by name: the best so far, and what it is resumed from."""

_MAY_CHANGE = {
    "name", "version", "intended_use", "limits",
    *(f"training.{name}" for name in ("log_every", "early_stopping", "time_limit_minutes", "device", "threads")),
    *(f"training.{name}" for name in ("workers", "pictures")),
}  # fmt: skip
"""Settings that a resumed training may change, because they change no step of it (but, for device and threads, its
last bits)."""


@dataclass
class State:
    """Changed in place, step by step."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    """The moving average of the weights, where the settings ask for one."""
    step: int = 0
    """Optimiser steps done."""
    validated: int = 0
    """The step of the last validation."""
    best: float | None = None
    """The headline metric of the best validation."""
    best_step: int = 0
    stale: int = 0
    """Validations since the best."""
    seconds: float = 0.0
    """Spent so far, over all resumed runs."""
    finished: bool = False

    @classmethod
    def fresh(cls, experiment: Experiment, device: torch.device) -> Self:
        """Untrained; the initial weights are a function of the seed."""
        settings, channels = experiment.training, experiment.preparation.channels
        torch.manual_seed(settings.seed)
        network = experiment.network.build(channels, experiment.task.network_channels(channels)).to(device)
        network = network.to(memory_format=layout_on(device, experiment.network.dims + 2))  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        averaged = None
        if settings.ema is not None:
            averaged = AveragedModel(network, multi_avg_fn=_moving_average(settings.ema), use_buffers=True)
        return cls(network, optimizer, averaged)

    @property
    def served(self) -> nn.Module:
        """The network that is validated and packaged."""
        return self.network if self.averaged is None else self.averaged.module

    def save(self, out: Path, experiment: Experiment) -> None:
        """last.pt below `out`, whole or not at all. Raises OutputError."""
        plain = {name: getattr(self, name) for name in _numbers()}
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        file = io.BytesIO()
        torch.save({"experiment": json.dumps(experiment.resolved), **plain, **modules}, file)
        write_files([AnswerFile(LAST, "application/octet-stream", file.getvalue())], out)

    def restore(self, out: Path, experiment: Experiment) -> None:
        """Go on from last.pt. Raises UsageError for none, SettingsError where the experiment was changed."""
        path = out / LAST
        if not path.is_file():
            raise UsageError(f"there is no {LAST} to resume from; train without --resume, or name the right folder")
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise TrainingError(f"{LAST} is damaged ({type(error).__name__}); train again in another folder") from None
        _require_same(json.loads(kept["experiment"]), experiment.resolved)
        for name, module in self._modules().items():
            module.load_state_dict(kept[name])
        for name in _numbers():
            setattr(self, name, kept[name])

    def _modules(self) -> dict[str, Any]:
        modules: dict[str, Any] = {"network": self.network, "optimizer": self.optimizer}
        return modules if self.averaged is None else {**modules, "averaged": self.averaged}


def layout_on(device: torch.device, ndim: int) -> torch.memory_format:
    """Of tensors with `ndim` axes: channels last on CUDA, where convolutions are faster so."""
    if device.type != "cuda":
        return torch.preserve_format
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def _numbers() -> list[str]:
    return [field.name for field in fields(State) if field.name not in ("network", "optimizer", "averaged")]


def _moving_average(decay: float) -> Any:
    """Weights, and BatchNorm's statistics with them, follow slowly; faster in the first steps, which say little."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        n = float(count)
        keep = min(decay, (1 + n) / (10 + n))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - keep)
            else:
                old.copy_(new)

    return update


def _require_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = dict(_leaves(before, "")), dict(_leaves(now, ""))
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in _MAY_CHANGE]
    if changed:
        said = ", ".join(f"{name} (was {old.get(name)}, is {new.get(name)})" for name in changed)
        raise SettingsError(
            f"a training goes on only as it began; changed: {said}. Undo that, or train anew in another folder."
        )


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{name}.{key}" if name else key)
    else:
        yield name, value
