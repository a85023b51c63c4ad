"""VQ-VAEs and their priors, from an experiment to a package and back."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medae.backends.torch import network_of, prior_of
from medae.calibration import Calibration
from medae.errors import PackageError, SettingsError, UnfitImage, UsageError
from medae.experiment import Experiment
from medae.io import read_image
from medae.latent import LatentSpace
from medae.metrics.book import Usage
from medae.networks import Codes
from medae.networks.prior import LONGEST, PriorSettings
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.training import loop, train
from medae.training.prior import bits_per_code, codes_of, with_prior
from tests.training_toys import anomaly, codes, disc_pictures, lines, require_same_end

SMALL = {"width": 16, "depth": 1, "heads": 2, "steps": 8, "validate_every": 4, "batch_size": 4}


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disc_pictures(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="module")
def trained(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training with a prior has left its results."""
    out = tmp_path_factory.mktemp("trained")
    train(codes(discs, prior=SMALL), out)
    return out


# ---- the prior itself


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
def test_a_code_is_judged_by_those_before_it_alone(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    prior = PriorSettings(width=16, depth=2, heads=2).build(5, grid).eval()
    indices = torch.randint(5, (2, *grid))
    before = prior.log_likelihood(indices)
    assert before.shape == indices.shape and before.dtype == torch.float32 and before.max() < 0
    changed = indices.clone().flatten(1)
    changed[:, 7] = (changed[:, 7] + 1) % 5
    differs = (prior.log_likelihood(changed.reshape(indices.shape)) != before).flatten(1)
    assert not differs[:, :7].any() and differs[:, 7:].any(1).all()


def test_the_chances_of_all_continuations_are_one() -> None:
    torch.manual_seed(0)
    prior = PriorSettings(width=8, depth=1, heads=1).build(3, (2, 2)).eval()
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).reshape(-1, 2, 2)
    total = prior.log_likelihood(every).flatten(1).sum(1).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))


def test_a_larger_grid_is_read_window_by_window_and_a_smaller_one_refused() -> None:
    torch.manual_seed(0)
    prior = PriorSettings(width=16, depth=1, heads=2).build(5, (3, 4)).eval()
    indices = torch.randint(5, (2, 7, 9))
    found = prior.log_likelihood(indices)
    for rows, columns in ((0, 0), (3, 4), (0, 4)):
        window = (slice(None), slice(rows, rows + 3), slice(columns, columns + 4))
        torch.testing.assert_close(found[window], prior.log_likelihood(indices[window]))
    torch.testing.assert_close(found[:, 6:, 8:], prior.log_likelihood(indices[:, 4:, 5:])[:, 2:, 3:])
    with pytest.raises(UnfitImage, match="2 x 9 codes, and the prior was trained on 3 x 4"):
        prior.log_likelihood(indices[:, :2])


def test_gradients_reach_every_parameter_of_a_prior() -> None:
    prior = PriorSettings(width=16, depth=2, heads=2).build(5, (3, 4))
    prior.log_likelihood(torch.randint(5, (4, 3, 4))).sum().backward()
    assert not [name for name, values in prior.named_parameters() if values.grad is None or not values.grad.any()]


def test_samples_are_drawn_as_likely_as_they_are() -> None:
    torch.manual_seed(1)
    prior = PriorSettings(width=8, depth=1, heads=1).build(2, (1, 2)).eval()
    drawn = prior.sample(4000, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, prior.sample(4000, torch.Generator().manual_seed(3)))
    every = torch.cartesian_prod(*[torch.arange(2)] * 2).reshape(-1, 1, 2)
    chances = prior.log_likelihood(every).flatten(1).sum(1).exp()
    counted = torch.stack([(drawn == one).all(-1).all(-1).float().mean() for one in every])
    assert ((counted - chances).abs() < 4 * (chances * (1 - chances) / 4000).sqrt()).all()


def test_a_grid_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=f"33 x 32 has 1056 codes, and a prior sees at most {LONGEST}"):
        PriorSettings(grid=(33, 32))


# ---- in a package


def test_training_says_how_the_book_is_used(trained: Path) -> None:
    losses = [line["train"] for line in lines(trained) if "train" in line]
    assert all(1 <= line["perplexity"] <= line["codes_used"] <= 16 for line in losses)
    metrics = ModelPackage.load(trained / "package").card.metrics
    found = metrics["validation"]["codes"]
    assert 1 <= found["perplexity"] <= found["used"] <= found["entries"] == 16
    assert found["counted"] == 8 * 8 * 2  # of two pictures of 32 x 32
    assert metrics["prior"]["bits_per_code"] > 0


def test_a_prior_comes_back_from_its_package(trained: Path, discs: Path) -> None:
    package = ModelPackage.load(trained / "package")
    prior = prior_of(package)
    assert prior.grid == (4, 4) and prior.codes == 16 and not prior.training
    experiment = codes(discs, prior=SMALL)
    validation = codes_of(LatentSpace(package), experiment, "validation")
    assert bits_per_code(prior, validation) == pytest.approx(package.card.metrics["prior"]["bits_per_code"], abs=1e-4)
    without = package.card.metrics["prior"]["bits_per_code_without_neighbours"]
    assert Usage.of(validation, 16).bits == pytest.approx(without, abs=1e-4)


def test_a_prior_that_was_changed_is_refused(trained: Path, tmp_path: Path) -> None:
    ModelPackage.load(trained / "package").save(tmp_path / "copy")
    damaged = bytearray((tmp_path / "copy" / "prior.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "copy" / "prior.safetensors").write_bytes(damaged)
    with pytest.raises(PackageError, match=r"prior\.safetensors is not what card\.json was made for"):
        ModelPackage.load(tmp_path / "copy")
    (tmp_path / "copy" / "prior.safetensors").unlink()
    with pytest.raises(PackageError, match="not complete"):
        ModelPackage.load(tmp_path / "copy")


def test_a_prior_changes_no_answer(trained: Path, discs: Path) -> None:
    package = ModelPackage.load(trained / "package")
    other = with_prior(package, codes(discs, prior=SMALL | {"steps": 4}))
    assert other.digest != package.digest
    assert other.card.weights_sha256 == package.card.weights_sha256
    assert other.card.prior_sha256 != package.card.prior_sha256
    image = read_image(discs / "images" / "disc-0.png")
    answers = [Predictor(one)(image).image.pixels for one in (package, other)]
    assert np.array_equal(*answers)


def test_a_score_asks_the_prior_how_likely_the_codes_are(discs: Path, tmp_path: Path) -> None:
    asked = {"kind": "anomaly", "scores": [{"kind": "code_likelihood"}, {"kind": "residual"}]}
    experiment = Experiment.model_validate(codes(discs, prior=SMALL).resolved | {"task": asked})
    package = train(experiment, tmp_path / "run", progress=False)
    assert package.prior is not None and package.digest == ModelPackage.load(tmp_path / "run" / "package").digest
    image = read_image(discs / "images" / "disc-0.png")
    prediction = Predictor(package)(image)
    latent = LatentSpace(package).encode(image)
    assert isinstance(latent, Codes)
    nats = -prior_of(package).log_likelihood(latent.indices).detach().numpy()
    expected = np.kron(nats, np.ones((1, 4, 4)))[:, : image.geometry.shape[1], : image.geometry.shape[2]] / 16
    np.testing.assert_allclose(prediction.image.pixels[0], expected, rtol=1e-4)
    assert prediction.scores["code_likelihood_mean"] == pytest.approx(expected.mean(), rel=1e-4)
    scores = {name: np.linspace(0, 1, 200).tolist() for name in ("code_likelihood_mean", "l2_mean")}
    calibrated = package.calibrated(Calibration.from_scores(scores, package_digest=package.digest))
    other = with_prior(calibrated, experiment.model_copy(update={"prior": PriorSettings(**SMALL | {"steps": 4})}))
    assert other.calibration is None, "its scores are of another prior now"


def test_a_score_without_a_prior_to_ask_is_refused(discs: Path) -> None:
    asked = {"kind": "anomaly", "scores": [{"kind": "code_likelihood"}]}
    with pytest.raises(ValidationError, match="code_likelihood needs a prior over the codes"):
        Experiment.model_validate(codes(discs).resolved | {"task": asked})


def test_a_prior_is_the_same_again(trained: Path, discs: Path) -> None:
    package = ModelPackage.load(trained / "package")
    bare = ModelPackage.seal(package.card.model_copy(update={"prior": None, "prior_sha256": None}), package.weights)
    with pytest.raises(UsageError, match="has no prior over its codes; make one"):
        prior_of(bare)
    again = with_prior(bare, codes(discs, prior=SMALL))
    assert again.card.prior_sha256 == package.card.prior_sha256 and again.digest == package.digest


def test_a_calibration_goes_over_to_the_package_with_a_prior(trained: Path) -> None:
    package = ModelPackage.load(trained / "package")
    scores = np.linspace(0, 1, 200).tolist()
    score = package.card.task.score_name
    made = package.calibrated(Calibration.from_scores({score: scores}, package_digest=package.digest))
    told = made.retold(limits="none known")
    assert told.digest != made.digest and told.calibration is not None and made.calibration is not None
    assert told.calibration.package_digest == told.digest
    assert told.prior is made.prior
    assert told.calibration.model_copy(update={"package_digest": made.digest}) == made.calibration


# ---- in a training


@pytest.mark.parametrize("step", [2, 4])
def test_a_book_is_resumed_to_the_bit(step: int, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an average of the weights, which has a book of its own, and a prior at the end."""
    import os

    experiment = codes(discs, prior=SMALL, ema=0.9)
    train(experiment, tmp_path / "whole")
    plain = loop._step

    def stopping(training: Any, batch: Any) -> None:
        plain(training, batch)
        if training.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(SystemExit):
        train(experiment, tmp_path / "parts")
    monkeypatch.undo()
    train(experiment, tmp_path / "parts", resume=True)
    require_same_end(tmp_path / "whole", tmp_path / "parts")


def test_an_averaged_book_belongs_to_the_averaged_encoder(discs: Path, tmp_path: Path) -> None:
    """The packaged network uses its book, and its entries are where its own encodings are."""
    package = train(codes(discs, steps=60, validate_every=60, ema=0.9), tmp_path)
    used = package.card.metrics["validation"]["codes"]["used"]
    assert used >= 8
    network = network_of(package)
    latent = LatentSpace(package).encode(read_image(discs / "images" / "disc-0.png"))
    assert isinstance(latent, Codes) and latent.encoded is not None
    spread = latent.encoded.var((0, 2, 3)).sum()
    missed = (latent.encoded - latent.vectors).square().sum(1).mean()
    assert missed < 0.3 * spread
    assert network.quantiser.book.isfinite().all()


def test_a_prior_that_was_stopped_begins_again(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    experiment = codes(discs, prior=SMALL)
    train(experiment, tmp_path / "whole")
    plain = loop.with_prior

    def stopped(package: Any, experiment: Any, *, watch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(package, experiment, watch=watch)

    monkeypatch.setattr(loop, "with_prior", stopped)
    with pytest.raises(SystemExit):
        train(experiment, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    train(experiment, tmp_path / "parts", resume=True)
    require_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_prior_beats_counting_where_neighbours_tell(discs: Path, tmp_path: Path) -> None:
    """On a book of stripes: each code follows from the one before it."""
    from medae.training.prior import _fit

    rng = np.random.default_rng(0)
    grids = [torch.from_numpy((np.arange(6) + rng.integers(4, size=(6, 1))) % 4) for _ in range(24)]
    settings = PriorSettings(width=16, depth=2, heads=2, steps=150, validate_every=50, learning_rate=5e-3)
    experiment = codes(discs, prior={"grid": [4, 4]})
    prior, _, bits = _fit(settings, experiment, 4, grids[:16], grids[16:], torch.device("cpu"), lambda *_: None)
    assert Usage.of(grids[16:], 4).bits > 1.9
    assert bits < 1.0  # 2 bits for the first code of a row, little for the others
    drawn = prior.sample(8, torch.Generator().manual_seed(0))
    assert ((drawn[:, :, 1:] - drawn[:, :, :-1]) % 4 == 1).float().mean() > 0.8
    assert math.isfinite(bits)


# ---- refusals


def test_what_makes_no_sense_is_refused_when_the_configuration_is_read(discs: Path) -> None:
    def refused(experiment: Experiment, **changes: Any) -> str:
        with pytest.raises(ValueError) as error:
            Experiment.model_validate(experiment.resolved | changes)
        return str(error.value)

    vae, vq = anomaly(discs), codes(discs)
    assert "vae has a continuous latent (gaussian): take vqvae" in refused(vae, prior={})
    unet = {"kind": "unet", "features": [4, 8], "strides": [2]}
    noisy = {"kind": "restoration", "corruption": {"kind": "gaussian", "level": [0.1, 0.2]}}
    assert "unet has no latent" in refused(vae, prior={}, network=unet, task=noisy, objectives=[{"kind": "mse"}])
    assert "at most 1024" in refused(vq, prior={"grid": [40, 40]})
    assert "network is 2-D" in refused(vq, prior={"grid": [4, 4, 4]})
    assert "multiple of heads" in refused(vq, prior={"width": 10, "heads": 4})
    commitment = [{"kind": "mse"}, {"kind": "commitment"}]
    assert "whose latent is codes: vqvae; vae has gaussian" in refused(vae, objectives=commitment)
    fsq = {"kind": "vqvae", "quantiser": {"kind": "fsq"}}
    assert "needs network.book learned; vqvae has fixed" in refused(vq, network=fsq, objectives=commitment)
    assert "compares nothing" in refused(vq, objectives=[{"kind": "commitment"}])
    assert "whose latent is gaussian" in refused(vq, objectives=[{"kind": "mse"}, {"kind": "kl"}])


def test_a_prior_for_a_continuous_latent_is_refused(discs: Path, tmp_path: Path) -> None:
    package = train(anomaly(discs), tmp_path)
    with pytest.raises(UsageError, match="vae has a continuous latent"):
        with_prior(package, anomaly(discs))


def test_images_with_too_few_codes_are_refused(trained: Path, discs: Path) -> None:
    package = ModelPackage.load(trained / "package")
    with pytest.raises(SettingsError, match="no image of the train split has 20 x 20 codes"):
        with_prior(package, codes(discs, prior=SMALL | {"grid": [20, 20]}))
