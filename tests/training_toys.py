"""Trainings of seconds on 32-pixel pictures, for the tests of training and evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from medae.experiment import Experiment
from medae.package import ModelPackage

SIDE = 32
TRAINING = {"steps": 6, "validate_every": 3, "log_every": 2, "batch_size": 2, "patch": [16, 16], "pictures": 2}


def disc_pictures(root: Path, count: int = 8) -> Path:
    """images/*.png: grey noise with one bright disc each; masks/*.png: the disc as 255."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        row, column, radius = rng.uniform([10, 10, 4], [22, 22, 9])
        disc = np.hypot(rows - row, columns - column) < radius
        picture = (60 + 120 * disc + rng.normal(0, 12, disc.shape)).clip(0, 255).astype(np.uint8)
        Pillow.fromarray(picture).save(root / "images" / f"disc-{number}.png")
        Pillow.fromarray(disc.astype(np.uint8) * 255).save(root / "masks" / f"disc-{number}.png")
    return root


def segmentation(root: Path, **training: Any) -> Experiment:
    """U-Net, augmented."""
    return Experiment.model_validate(
        {
            "name": "discs",
            "data": {"kind": "folder", "root": root, "images": "images/*.png", "targets": "masks/*.png"},
            "task": {"kind": "segmentation", "labels": [{"name": "disc", "colour": [255, 0, 0]}]},
            "network": {"kind": "unet", "features": [4, 8], "strides": [2], "residual_units": 0},
            "objectives": [{"kind": "dice_ce"}],
            "augment": {"flip": ["rows"], "rot90": True, "intensity": {}, "noise": {}},
            "training": TRAINING | training,
        }
    )


def denoising(root: Path, **training: Any) -> Experiment:
    """DnCNN, random corruption."""
    return Experiment.model_validate(
        {
            "name": "denoise-discs",
            "data": {"kind": "folder", "root": root, "images": "images/*.png"},
            "task": {"kind": "restoration", "corruption": {"kind": "gaussian", "level": [0.1, 0.2]}},
            "network": {"kind": "dncnn", "depth": 3, "features": 8},
            "objectives": [{"kind": "mse"}, {"kind": "l1", "weight": 0.1}],
            "training": TRAINING | training,
        }
    )


def anomaly(root: Path, **training: Any) -> Experiment:
    """VAE, which draws its code at each step."""
    return Experiment.model_validate(
        {
            "name": "normal-discs",
            "data": {"kind": "folder", "root": root, "images": "images/*.png", "validation": 0.4, "test": 0.2},
            "task": {"kind": "anomaly"},
            "network": {"kind": "vae", "features": [4], "latent_channels": 2},
            "objectives": [{"kind": "mse"}, {"kind": "kl", "weight": 0.1}],
            "training": TRAINING | {"ema": None} | training,
        }
    )


def codes(root: Path, *, prior: dict[str, Any] | None = None, **training: Any) -> Experiment:
    """VQ-VAE with a book of 16 entries, at a quarter of the size; its draws are those of its restarts."""
    return Experiment.model_validate(
        {
            "name": "words-of-discs",
            "data": {"kind": "folder", "root": root, "images": "images/*.png", "validation": 0.25, "test": 0.25},
            "task": {"kind": "anomaly"},
            "network": {
                "kind": "vqvae",
                "features": [6, 8],
                "residual_units": 0,
                "quantiser": {"kind": "ema", "codes": 16, "channels": 4},
            },
            "objectives": [{"kind": "mse"}, {"kind": "commitment"}],
            "prior": prior,
            "training": TRAINING | {"ema": None} | training,
        }
    )


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """Everything in last.pt that is a number, by name."""
    found: dict[str, torch.Tensor] = {}

    def walk(value, name):
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, below in value.items():
                walk(below, f"{name}.{key}")

    walk(torch.load(out / "last.pt", weights_only=True), "")
    return found


def require_same_end(first: Path, second: Path) -> None:
    """The same package and, to the bit, the same network, optimiser and average."""
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys() and len(one) > 10
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert ModelPackage.load(first / "package").digest == ModelPackage.load(second / "package").digest
    losses = [[line for line in lines(out) if "validation" in line] for out in (first, second)]
    for line in (line for out in losses for line in out):
        line.pop("seconds")
    assert losses[0] == losses[1]
