"""The shipped 3-D configuration learns, on the real volumes it is for."""

import json
from pathlib import Path

import pytest

from medae.evaluation import evaluate
from medae.experiment import Experiment
from medae.settings import load_settings
from medae.shipped import find_config
from medae.training import train

STEPS = 80
CHANCE = 0.2
"""Dice that no guess reaches: each label fills less than 3 % of a volume, so marking everything gives .05."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_training_learns_both_labels(shared_data: Path, tmp_path: Path) -> None:
    changes = [
        f"data.root={shared_data / 'msd_task04_hippocampus'}",
        f"training.steps={STEPS}",
        f"training.validate_every={STEPS}",
        "training.log_every=10",
        "training.ema=0.9",
        "training.threads=1",
    ]
    experiment = load_settings(find_config("radiology/hippocampus"), Experiment, changes)
    package = train(experiment, tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train"]["loss"] for line in lines if "train" in line]
    assert len(losses) == STEPS / 10
    assert max(losses[-2:]) < 0.5 * losses[0]
    found = evaluate(package, split="validation").metrics
    assert found["cases"] == 20
    for label in ("anterior", "posterior"):
        assert found[f"dice_{label}"]["mean"] > CHANCE
