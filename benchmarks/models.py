"""What the benchmarks measure: models trained from a shipped configuration, and whole packages with random weights."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medae.package import ModelPackage, load

MACHINE = {"threads": 1}
"""Of every training here: one thread, so that its seed decides every bit."""


def trained(config: str, changes: Sequence[str] = (), package: Path | None = None) -> ModelPackage:
    """The model of a shipped configuration, trained now; or the one at `package`."""
    if package is not None:
        return load(package)
    from medae.experiment import Experiment
    from medae.settings import load_settings
    from medae.shipped import find_config
    from medae.training import train

    fixed = [f"training.{name}={value}" for name, value in MACHINE.items()]
    experiment = load_settings(find_config(config), Experiment, [*fixed, *changes])
    with tempfile.TemporaryDirectory() as folder:
        return train(experiment, Path(folder) / "run", progress=False)


def untrained(task: Any, network: Any, channels: int, seed: int = 0, intensity: Any = None) -> ModelPackage:
    """A package with random weights and with norm statistics that matter, as a training would leave them."""
    import torch
    from torch import nn

    from medae.package import Card
    from medae.preparation import Preparation

    torch.manual_seed(seed)
    built = network.build(channels, task.network_channels(channels))
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    card = Card(
        name=network.kind,
        version="0",
        task=task,
        network=network.model_dump(mode="json"),
        channels_in=channels,
        channels_out=task.channels_out(channels),
        receptive_field=task.seen(network.receptive_field()),
        preparation=Preparation(channels=channels, **({"intensity": intensity} if intensity else {})),
    )
    return ModelPackage.seal(card, {name: value.numpy() for name, value in built.state_dict().items()})


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; numbers with a point are shown to three places unless they came as text."""
    lines = [list(header), ["---"] * len(header)]
    lines += [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
