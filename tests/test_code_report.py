"""Beside validation and evaluation stands what the code of an autoencoder holds, of the images as the network sees
them."""

import logging

import numpy as np
import pytest
import torch

from medae.backends.code_report import PATCHES, CodeReport
from medae.evaluation import evaluate
from medae.image import Image
from medae.networks import Gaussian
from medae.objectives import GaussianLikelihood
from medae.package import ModelPackage
from medae.preparation import Preparation
from medae.tasks import Anomaly, Restoration
from medae.training import train
from tests.conftest import untrained_package
from tests.test_evaluation import picture
from tests.training_toys import anomaly, disc_pictures, lines

VAE = {"kind": "vae", "features": [4, 8], "latent_channels": 3}
LEARNED = [{"kind": "gaussian", "variance": "learned"}, {"kind": "kl"}]


def package(network=VAE, *, task=None, objectives=(), patch=(16, 16), intensity=None) -> ModelPackage:
    preparation = Preparation() if intensity is None else Preparation.model_validate({"intensity": intensity})
    made = untrained_package(task or Anomaly(), dict(network), preparation)
    experiment = {"objectives": list(objectives), "training": {"patch": list(patch)}}
    return ModelPackage.seal(made.card.model_copy(update={"experiment": experiment}), made.weights)


def grey(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_patches_of_the_training_are_seen_by_the_posterior_itself():
    report = CodeReport.of(package())
    assert report is not None
    image = grey((37, 50))
    report.see(Image.from_picture(image))
    x = torch.from_numpy(image.astype(np.float32) / 255)
    cut = torch.stack([x[None, r : r + 16, c : c + 16] for r in (0, 16) for c in (0, 16, 32)])
    with torch.no_grad():
        latent = report._network.encode(cut)
    assert isinstance(latent, Gaussian)
    nats = 0.5 * (latent.mean.square() + latent.log_variance.exp() - 1 - latent.log_variance)
    found = report.summary()["posterior"]
    assert found["kl_per_dimension"] == pytest.approx(nats.sum((0, 2, 3)).div(6).tolist(), rel=1e-3, abs=1e-6)
    assert found["kl_nats"] == pytest.approx(nats.flatten(1).sum(1).mean().item(), rel=1e-4)


@pytest.mark.parametrize(("shape", "expected"), [((10, 13), 1), ((16, 100), 6), ((400, 300), PATCHES)])
def test_small_images_are_one_patch_and_large_ones_a_few(shape, expected, monkeypatch):
    report = CodeReport.of(package())
    assert report is not None
    seen = []
    monkeypatch.setattr(report._posterior, "see", lambda mean, log_variance: seen.append(len(mean)))
    report.see(Image.from_picture(grey(shape)))
    assert sum(seen) == expected


def test_volumes_are_seen_in_three_dimensions(tilted_volume):
    report = CodeReport.of(package({**VAE, "dims": 3}, patch=(4, 8, 8)))
    assert report is not None
    report.see(tilted_volume)
    assert report.summary()["posterior"]["dimensions"] == 3


def test_bits_are_of_the_likelihood_that_made_the_model():
    network = {"kind": "conv_autoencoder", "features": [4], "decoder": "gaussian"}
    report = CodeReport.of(package(network, objectives=LEARNED[:1]))
    assert report is not None
    image = grey((80, 16))  # five patches, in groups of four and one
    report.see(Image.from_picture(image))
    x = torch.from_numpy(image.astype(np.float32) / 255).reshape(5, 1, 16, 16)
    with torch.no_grad():
        exact = GaussianLikelihood(variance="learned").build().bits_per_value(report._network.autoencode(x), x)
    assert report.summary() == {"bits_per_value": pytest.approx(exact.item(), rel=1e-6)}


@pytest.mark.parametrize(
    "made",
    [
        package({"kind": "unet", "features": [4, 8], "strides": [2]}, task=Restoration()),
        package({"kind": "conv_autoencoder", "features": [4]}, objectives=[{"kind": "mse"}]),
        package({"kind": "conv_autoencoder", "features": [4]}, task=Restoration(), objectives=[{"kind": "gaussian"}]),
        package(
            {"kind": "conv_autoencoder", "features": [4]},
            objectives=[{"kind": "gaussian"}],
            intensity={"kind": "zscore"},
        ),
    ],
    ids=["no code", "no distribution", "another image", "no grey levels"],
)
def test_what_has_nothing_to_report(made):
    assert CodeReport.of(made) is None


def test_evaluation_reports_the_code_and_warns_of_a_collapse(caplog):
    made = package(objectives=LEARNED[1:])
    cases = [picture(grey((20, 24), seed), f"case-{seed}") for seed in range(3)]
    alive = evaluate(made, cases).metrics["posterior"]
    assert alive["dimensions"] == 3 and len(alive["kl_per_dimension"]) == 3
    # the same network, but it answers the prior whatever it sees
    dead = {
        name: np.zeros_like(value) if name.startswith(("mean.", "log_variance.")) else value
        for name, value in made.weights.items()
    }
    with caplog.at_level(logging.WARNING):
        found = evaluate(ModelPackage.seal(made.card, dead), cases).metrics["posterior"]
    assert found["collapsed"] and found["active_units"] == 0 and found["kl_nats"] == 0
    assert "posterior collapse: 0 of 3 dimensions" in caplog.text


def test_training_puts_it_on_the_card_with_what_was_made_small(tmp_path):
    made = train(anomaly(disc_pictures(tmp_path / "discs")), tmp_path / "out")
    kept = made.card.metrics["validation"]["posterior"]
    assert kept["dimensions"] == 2
    assert kept in [line["validation"]["posterior"] for line in lines(tmp_path / "out") if "validation" in line]
    assert made.card.objectives == ("1 x mse", "0.002 x kl")
    readme = (tmp_path / "out/package/README.md").read_text()
    assert "**trained for**: 1 x mse; 0.002 x kl" in readme and "kl_per_dimension" in readme
