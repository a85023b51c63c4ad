"""Layer-wise pre-training: each stage learns alone, on what the ones before made, and resuming changes no bit."""

import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from medae.experiment import Experiment
from medae.networks import ConvAutoencoderSettings, DenseAutoencoderSettings, StackedAutoencoder
from medae.training import loop, train
from medae.training.layer_wise import phase_at, stage_loss
from tests.training_toys import anomaly, disc_pictures, lines, require_same_end

DENSE: dict[str, Any] = {"kind": "dense_autoencoder", "size": [32, 32], "widths": [24, 6], "activation": "tanh"}
CONV: dict[str, Any] = {"kind": "conv_autoencoder", "features": [4, 6], "bottleneck": 3}


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    return disc_pictures(tmp_path_factory.mktemp("discs"))


def experiment(root: Path, network: dict, **training):
    data = anomaly(root).resolved | {"network": network, "objectives": [{"kind": "mse"}]}
    data["training"] |= {"patch": [32, 32]} | training
    return Experiment.model_validate(data)


def test_phases_divide_the_share_evenly_and_leave_the_rest_to_all():
    steps = 40
    phases = [phase_at(step / steps, 0.5, 2) for step in range(steps)]
    assert [phase.stage for phase in phases] == [0] * 10 + [1] * 10 + [None] * 20
    for start, length in ((0, 10), (10, 10), (20, 20)):
        inside = [phase.progress for phase in phases[start : start + length]]
        assert inside == pytest.approx([n / length for n in range(length)], abs=1e-9)
    assert phase_at(0.3, 0, 0).stage is None and phase_at(0.3, 0, 0).progress == 0.3


@pytest.mark.parametrize(
    "settings",
    [DenseAutoencoderSettings(size=(8, 8), widths=(9, 5, 3)), ConvAutoencoderSettings(features=(4, 6), bottleneck=3)],
    ids=lambda settings: settings.kind,
)
def test_a_stage_moves_its_own_weights_and_leaves_the_others_alone(settings):
    torch.manual_seed(0)
    network = settings.build(1, 1)
    assert isinstance(network, StackedAutoencoder)
    x = torch.rand(4, 1, 8, 8)
    finished: dict[str, torch.Tensor] = {}
    for number, stage in enumerate(network.stages):
        network.train().zero_grad()
        stage_loss(network, number, x, x).backward()
        own = {id(values) for part in stage for values in part.parameters()}
        moved = {id(values) for values in network.parameters() if values.grad is not None}
        assert own == moved
        now = network.stages[0].encoder.state_dict()
        # of a stage that is done, the norm's statistics are done too
        assert number == 0 or all(torch.equal(now[name], values) for name, values in finished.items())
        finished = {name: values.clone() for name, values in now.items()}


@pytest.mark.parametrize(("network", "stages"), [(DENSE, 2), (CONV, 3)], ids=["dense", "conv"])
def test_each_stage_falls_and_then_all_are_trained(network, stages, discs, tmp_path):
    settings = {"steps": 160, "validate_every": 160, "log_every": 10, "layer_wise": 0.75, "batch_size": 8}
    train(experiment(discs, network, **settings, learning_rate=0.01, pictures=0), tmp_path)
    trained = [line["train"] for line in lines(tmp_path) if "train" in line]
    names = [f"stage_{number + 1}" for number in range(stages)]
    assert {name for line in trained for name in line if name.startswith("stage_")} == set(names)
    for stage in names:
        losses = [line[stage] for line in trained if stage in line]
        assert losses[-1] < losses[0]
        # monotone up to the noise of random patches
        assert all(later < 1.1 * earlier for earlier, later in pairwise(losses))
    fine = [line["mse"] for line in trained if "mse" in line]
    assert fine[-1] < fine[0]


@pytest.mark.parametrize("at", [2, 4, 7])
def test_resuming_in_any_stage_changes_no_bit(at, discs, tmp_path, monkeypatch):
    settings = experiment(discs, CONV, steps=8, validate_every=4, layer_wise=0.75, ema=0.9)
    train(settings, tmp_path / "whole")
    plain = loop._step

    def signalled(training, batch):
        plain(training, batch)
        if training.state.step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_step", signalled)
    with pytest.raises(SystemExit):
        train(settings, tmp_path / "parts")
    monkeypatch.undo()
    train(settings, tmp_path / "parts", resume=True)
    require_same_end(tmp_path / "whole", tmp_path / "parts")
