"""Anomaly scores: maps, reducers, what is fitted, and that tiles, doors and cards stay as they are."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.ndimage import label
from skimage.metrics import structural_similarity

from medae import fitting
from medae.backends.torch import network_of
from medae.calibration import Calibration
from medae.errors import PackageError, SettingsError, UnfitImage
from medae.experiment import Experiment
from medae.fitting import _patches, fit_scores
from medae.image import Geometry, Image
from medae.package import Card, ModelPackage
from medae.predictor import Predictor
from medae.preparation import Preparation
from medae.scores import Found, Profile, ScoreConfig, Statistics
from medae.scores.baselines import whitening_of
from medae.scores.ensemble import rank
from medae.scores.reducers import LargestComponent, Max, Mean, Quantile, TopPercent
from medae.scores.regions import regions
from medae.tasks import Anomaly
from medae.tiles import plan_tiles
from tests.conftest import tilted_affine, untrained_package

VAE: dict[str, Any] = {"kind": "vae", "features": [4, 6], "latent_channels": 3}
GAUSSIAN = VAE | {"decoder": "gaussian"}
SCORES: dict[str, dict[str, Any]] = {
    "l1": {"kind": "residual", "distance": "l1"},
    "l2": {"kind": "residual"},
    "ssim": {"kind": "ssim", "sigma": 1.0},
    "kl": {"kind": "kl"},
    "elbo": {"kind": "elbo"},
    "nll": {"kind": "nll"},
    "variance": {"kind": "variance"},
    "head": {"kind": "variance_head"},
    "code gaussian": {"kind": "mahalanobis"},
    "texture gaussian": {"kind": "mahalanobis", "features": {"kind": "texture", "cell": 4}},
    "code neighbours": {"kind": "neighbours", "bank": 40},
    "perceptual": {"kind": "perceptual"},
    "texture neighbours": {"kind": "neighbours", "features": {"kind": "texture", "cell": 8}, "bank": 40},
}
OWN = {
    "own code": {"kind": "mahalanobis", "positions": "own"},
    "own texture": {"kind": "mahalanobis", "positions": "own", "features": {"kind": "texture", "standardise": True}},
    "own neighbours": {"kind": "neighbours", "positions": "own", "bank": 30},
}


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "HEAD_STEPS", 20)


def smooth(seed: int, rows: int = 45, columns: int = 38, channels: int = 1) -> Image:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal((channels, rows, columns))
    values = np.clip(0.5 + 1.5 * gaussian_filter(noise, (0, 2, 2)), 0, 1).astype(np.float32)
    return Image.from_picture(np.moveaxis(values, 0, -1) if channels == 3 else values[0])


def fitted(
    *scores: dict[str, Any], network: dict[str, Any] = GAUSSIAN, channels: int = 1, count: int = 12, **task: Any
) -> ModelPackage:
    task_ = Anomaly.model_validate({"kind": "anomaly", "scores": list(scores), **task})
    package = untrained_package(task_, network, Preparation(channels=channels))  # type: ignore[arg-type]
    return fit_scores(package, [smooth(seed, channels=channels) for seed in range(count)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SCORES)
def test_a_score_in_tiles_is_that_of_the_whole_image(name: str, channels: int) -> None:
    package = fitted(SCORES[name], channels=channels)
    image = smooth(99, 150, 131, channels)
    whole, tiled = Predictor(package)(image), Predictor(package, tile_voxels=112 * 112)(image)
    key = package.card.task.score_name  # type: ignore[union-attr]
    scale = np.abs(whole.image.pixels).max()
    np.testing.assert_allclose(tiled.image.pixels, whole.image.pixels, atol=1e-4 * scale)
    assert tiled.scores[key] == pytest.approx(whole.scores[key], rel=1e-3)
    assert whole.image.pixels.shape == (1, 1, 150, 131)
    assert whole.scores[key] == pytest.approx(float(whole.image.pixels.mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["ssim", "kl", "head", "code gaussian", "texture neighbours", "perceptual"])
def test_volumes_are_scored_in_tiles_too(name: str) -> None:
    task = Anomaly.model_validate({"kind": "anomaly", "scores": [SCORES[name]]})
    package = untrained_package(task, {"kind": "vae", "dims": 3, "features": [4], "latent_channels": 2})  # type: ignore

    def volume(seed: int, slices: int = 8, side: int = 24) -> Image:
        pixels = np.random.default_rng(seed).random((1, slices, side, side + 2), np.float32)
        return Image(pixels, Geometry(pixels.shape[1:], tilted_affine()))

    package = fit_scores(package, [volume(seed) for seed in range(3)])
    image = volume(99, 30, 120)
    whole, tiled = Predictor(package)(image), Predictor(package, tile_voxels=24 * 88 * 88)(image)
    assert len(plan_tiles(image.geometry.shape, package.card.receptive_field, 24 * 88 * 88).tiles) > 1
    np.testing.assert_allclose(tiled.image.pixels, whole.image.pixels, atol=1e-4 * np.abs(whole.image.pixels).max())
    np.testing.assert_array_equal(whole.image.geometry.affine, image.geometry.affine)


@pytest.mark.parametrize(
    "network",
    [
        {"kind": "vae", "features": [4, 6], "latent_channels": 5, "size": [32, 24]},
        {"kind": "dense_autoencoder", "size": [32, 24], "widths": [12, 5]},
    ],
    ids=["flat", "dense"],
)
def test_a_flat_code_stands_for_the_whole_image(network: dict[str, Any]) -> None:
    scores = [SCORES["code gaussian"], SCORES["code neighbours"], SCORES["head"]]
    scores += [SCORES["kl"]] if network["kind"] == "vae" else []
    task = Anomaly.model_validate({"kind": "anomaly", "scores": scores})
    package = untrained_package(task, network)  # type: ignore[arg-type]
    package = fit_scores(package, [smooth(seed, 32, 24) for seed in range(8)])
    found = Predictor(package)(smooth(99, 32, 24))
    assert found.image.pixels.shape == (1, 1, 32, 24) and np.ptp(found.image.pixels) < 1e-5
    assert np.isfinite(list(found.scores.values())).all()


@pytest.mark.parametrize("name", OWN)
def test_places_of_their_own_need_images_of_one_size(name: str) -> None:
    package = fitted(OWN[name], network=VAE)
    assert Predictor(package)(smooth(99)).image.pixels.shape == (1, 1, 45, 38)
    with pytest.raises(UnfitImage, match="45 x 38"):
        Predictor(package)(smooth(99, 45, 39))
    with pytest.raises(SettingsError, match="one size"):
        fit_scores(package, [smooth(0), smooth(1, 30, 30)])


def test_several_scores_share_one_pass_and_each_has_its_own_number() -> None:
    single = {name: fitted(score) for name, score in SCORES.items()}
    package = fitted(*SCORES.values())
    image = smooth(99)
    together = Predictor(package)(image).scores
    assert len(together) == len(SCORES)
    for alone in single.values():
        for key, value in Predictor(alone)(image).scores.items():
            if "head" not in key:  # its training depends on what was drawn before
                assert together[key] == pytest.approx(value, rel=1e-4), key
    # reconstruction, log variance and KL once each, and a channel for each map that the back end makes
    assert package.card.channels_out == 3 + 7


def test_ssim_is_that_of_scikit_image() -> None:
    package = fitted(SCORES["ssim"])
    image = smooth(3, 40, 36)
    with torch.no_grad():
        made = network_of(package).eval()(torch.from_numpy(image.pixels[:, 0][None].copy()))[0, 0].numpy()
    _, expected = structural_similarity(
        image.pixels[0, 0], made, data_range=1, gaussian_weights=True, sigma=1.0, use_sample_covariance=False, full=True
    )
    inner = (slice(5, -5), slice(5, -5))  # edges are continued otherwise there
    found = 1 - Predictor(package)(image).image.pixels[0, 0]
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)


def test_the_window_of_ssim_grows_with_the_patch() -> None:
    task = Anomaly.model_validate({"kind": "anomaly", "scores": [{"kind": "ssim"}]})
    assert task.at_size(128).scores[0].sigma == 3  # type: ignore[union-attr]
    assert task.at_size(28).scores[0].sigma == pytest.approx(0.65625)  # type: ignore[union-attr]


def test_kl_and_likelihoods_are_torchs() -> None:
    package = fitted(SCORES["kl"], SCORES["nll"], SCORES["variance"], SCORES["elbo"])
    image = smooth(5, 48, 40)
    network = network_of(package).eval()
    x = torch.from_numpy(image.pixels[:, 0][None].copy())
    with torch.no_grad():
        said = network.autoencode(x)  # type: ignore[operator]
        code = torch.distributions.Normal(said.latent.mean, (0.5 * said.latent.log_variance).exp())
        prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        kl = torch.distributions.kl_divergence(code, prior).sum() / x.numel()
        deviation = (0.5 * said.log_variance).exp()
        nll = -torch.distributions.Normal(said.prediction, deviation).log_prob(x).mean()
        fixed = -torch.distributions.Normal(said.prediction, 0.1).log_prob(x).mean()
        weighted = ((x - said.prediction) / deviation).square().mean()
    scores = Predictor(package)(image).scores
    expected = {"kl_mean": kl, "nll_mean": nll, "variance_mean": weighted, "elbo_mean": fixed + kl}
    assert scores == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)


def test_a_gaussian_of_features_is_the_one_of_numpy() -> None:
    package = fitted({"kind": "mahalanobis", "shrinkage": 0.1}, network=VAE)
    images = [smooth(seed) for seed in range(12)]
    network = network_of(package).eval()

    def codes(image: Image) -> np.ndarray:
        padded = np.pad(image.pixels[:, 0], ((0, 0), (0, 3), (0, 2)), mode="reflect")
        with torch.no_grad():
            return network.encode(torch.from_numpy(padded[None])).mean[0].numpy().reshape(3, -1).T  # type: ignore

    rows = np.concatenate([codes(image) for image in images]).astype(np.float64)
    covariance = np.cov(rows.T)
    inverse = np.linalg.inv(0.9 * covariance + 0.1 * np.eye(3) * np.trace(covariance) / 3)
    away = codes(images[0]) - rows.mean(0)
    distance = np.einsum("nf,fg,ng->n", away, inverse, away).reshape(12, 10) / 3
    found = Predictor(package)(images[0]).image.pixels[0, 0]
    np.testing.assert_allclose(found[::4, ::4], distance, rtol=1e-2)


def test_a_place_is_as_far_as_its_nearest_neighbours() -> None:
    package = fitted({"kind": "neighbours", "count": 1, "bank": 5000}, network=VAE)
    known, new = Predictor(package)(smooth(3)), Predictor(package)(smooth(99))
    assert known.image.pixels.max() < 1e-4  # each place is its own neighbour
    assert new.scores["neighbours_code_mean"] > 10 * known.scores["neighbours_code_mean"]


def test_a_restoration_takes_away_what_the_network_does_not_make() -> None:
    package = fitted({"kind": "restoration", "steps": 8}, network=VAE)
    clean, spot = smooth(3, 32, 32), smooth(3, 32, 32).pixels.copy()
    spot[0, 0, 10:16, 10:16] = 1 - spot[0, 0, 10:16, 10:16].round()
    one, again = (Predictor(package)(clean.with_pixels(spot)) for _ in range(2))
    np.testing.assert_array_equal(one.image.pixels, again.image.pixels)
    assert one.image.pixels.min() >= 0 and one.scores["restoration_mean"] > 0
    with torch.no_grad():
        network = network_of(package).eval()
        weights = {name: values.clone() for name, values in network.state_dict().items()}
    assert all(torch.equal(weights[name], values) for name, values in network.state_dict().items())


def test_a_variance_head_sees_patches_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medae.fitting.HEAD_PATCHES", 12)
    package = untrained_package(Anomaly(), VAE)
    volumes = [np.full((1, 10, 24, 20 + number), number, np.float32) for number in range(4)]
    seen = list(_patches(package, volumes, torch.device("cpu"), np.random.default_rng(0)))
    assert {x.shape for x in seen} == {(1, 1, 24, 20)} and len(seen) == 12
    assert {int(x.max()) for x in seen} == {0, 1, 2, 3}


def test_a_variance_head_learns_where_residuals_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that makes nothing of it, half of each image is noise: the head learns from the code alone."""

    def image(seed: int) -> Image:
        values = np.full((32, 32), 0.5, np.float32)
        values[:, 16:] += 0.3 * np.random.default_rng(seed).standard_normal((32, 16)).astype(np.float32)
        return Image.from_picture(np.clip(values, 0, 1))

    monkeypatch.setattr(fitting, "HEAD_STEPS", 300)
    task = Anomaly.model_validate({"kind": "anomaly", "scores": [SCORES["head"], SCORES["l2"]]})
    package = fit_scores(untrained_package(task, VAE), [image(seed) for seed in range(60)])  # type: ignore[arg-type]
    found = Predictor(package)(image(99)).image.pixels[0, 0]
    assert found[:, 18:].mean() == pytest.approx(1, abs=0.35)  # residual and expectation agree


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_and_ensembles_see_what_is_unlike_in_either_direction(channels: int) -> None:
    package = fitted(
        SCORES["l2"] | {"two_sided": True},
        {"kind": "statistics", "colour": True},
        {"kind": "rank_average", "members": ["l2_mean", "statistics"]},
        {"kind": "rank_average", "name": "highest", "by": "highest", "members": ["l2_mean", "statistics"]},
        {"kind": "statistics", "name": "joint", "members": ["l2_mean"]},
        channels=channels,
        count=40,
    )
    score = Predictor(package)
    normal = [score(smooth(seed, channels=channels)).scores for seed in range(200, 212)]
    flat = score(smooth(99, channels=channels).with_pixels(smooth(99, channels=channels).pixels * 0 + 0.5)).scores
    rough = score(Image.from_picture(np.random.default_rng(0).random((45, 38) + (channels,) * (channels > 1)))).scores
    assert all(row["highest"] >= row["rank_average"] for row in normal)
    for key in ("statistics", "rank_average", "highest", "joint"):
        assert min(flat[key], rough[key]) > max(row[key] for row in normal)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_profile_knows_what_is_in_the_middle_whichever_way_it_lies(channels: int) -> None:
    score = Profile(of="haematoxylin", smooth=0.5)
    image = smooth(3, 27, 27, channels).pixels
    profile = score.of_image(image)
    assert profile.shape == (5,)
    for turned in (np.rot90(image, axes=(2, 3)), image[:, :, ::-1], image[..., ::-1]):
        np.testing.assert_allclose(score.of_image(turned), profile, atol=1e-9)
    np.testing.assert_allclose(Profile().of_image(0.5 * image + 0.1), Profile().of_image(image), atol=0.02)
    spot = np.full((1, 1, 27, 27), 0.2, np.float32)
    spot[..., 9:18, 9:18] = 0.9
    assert np.all(np.diff(Profile().of_image(spot)) < 1e-9)


def test_other_scores_count_among_the_numbers_of_an_image() -> None:
    score = Statistics(members=("l2_mean",))
    images = [smooth(seed).pixels for seed in range(30)]
    values = [{"l2_mean": float(np.exp(seed % 3))} for seed in range(30)]
    kept = {f"scores.statistics.{name}": part for name, part in score.fit(images, values).items()}

    def with_l2(l2: float) -> float:
        return score.value(Found({}, smooth(99).pixels, None, kept, {"l2_mean": l2}))

    assert with_l2(np.exp(9)) > with_l2(np.exp(1)) < with_l2(np.exp(-7)), "in either direction"
    assert np.isfinite(with_l2(0))


def test_ranks_go_on_rising_beyond_the_references() -> None:
    quantiles = np.linspace(2, 4, 129)
    assert [rank(score, quantiles) for score in (2, 3, 4)] == pytest.approx([0, 0.5, 1])
    assert 1 < rank(5, quantiles) < rank(6, quantiles)
    assert 0 > rank(1, quantiles) > rank(0, quantiles)
    assert np.isfinite(rank(5, np.full(129, 3.0)))


def test_reducers() -> None:
    rng = np.random.default_rng(0)
    map_ = rng.random((1, 2, 9, 7))
    inside = rng.random((2, 9, 7)) < 0.5
    for reducer, expected in (
        (Mean(), np.mean),
        (Max(), np.max),
        (Quantile(percent=80), lambda values: np.percentile(values, 80)),
        (TopPercent(percent=100), np.mean),
        (TopPercent(percent=0.001), np.max),
    ):
        assert reducer(map_) == pytest.approx(expected(map_))
        assert reducer(map_, inside) == pytest.approx(expected(map_[0][inside]))
    parts, _ = label((map_[0] > 0.6) & inside)
    sizes = np.bincount(parts.ravel())[1:]
    largest = map_[0][parts == 1 + sizes.argmax()].sum() / inside.sum()
    assert LargestComponent(level=0.6)(map_, inside) == pytest.approx(largest)
    assert LargestComponent(level=2)(map_) == 0


def test_regions_are_the_connected_parts_above_a_level_largest_first() -> None:
    map_ = np.zeros((2, 12, 12), np.float32)
    map_[0, 1:4, 1:3] = 2
    map_[1, 1:4, 1:3] = 2
    map_[0, 8, 8], map_[0, 9, 9] = 5, 3  # corners do not touch
    found = regions(map_, 1)
    assert [region.voxels for region in found] == [12, 1, 1]
    assert found[0].centre == pytest.approx((0.5, 2, 1.5)) and found[0].peak == 2
    assert regions(map_, 6) == []


def test_a_calibrated_model_says_how_large_the_anomaly_is(tilted_volume: Image) -> None:
    package = fitted(SCORES["l2"], network=VAE)
    assert "regions" not in Predictor(package)(smooth(1)).scores
    reference = np.linspace(0, 1, 500).tolist()
    level = float(np.quantile(Predictor(package)(smooth(1)).image.pixels, 0.9))
    calibration = Calibration.from_scores({"l2_mean": reference}, package_digest=package.digest, map_maximum=level)
    scores = Predictor(package.calibrated(calibration))(smooth(1)).scores
    assert scores["regions"] >= 1 and 1 <= scores["largest_region_voxels"] <= 0.1 * 45 * 38
    map_ = tilted_volume.with_pixels(np.ones(tilted_volume.pixels.shape, np.float32))
    sized = Anomaly().regions(map_, 0.5)
    assert sized["largest_region_mm3"] == pytest.approx(7 * 9 * 11 * 2.5 * 0.8 * 1.1)


def test_only_the_foreground_counts_and_specks_go() -> None:
    bright = np.zeros((32, 32), np.float32)
    bright[4:20, 4:20] = 0.8
    bright[10, 10] = 1.0
    package = fitted(SCORES["l1"], network=VAE, foreground={"above": 0.5})
    found = Predictor(package)(Image.from_picture(bright))
    map_ = found.image.pixels[0, 0]
    assert (map_[bright == 0] == 0).all() and (map_[bright > 0] > 0).all()
    assert found.scores["l1_mean"] == pytest.approx(float(map_[bright > 0].mean()), rel=1e-5)
    with pytest.raises(UnfitImage, match="all of it is background"):
        Predictor(package)(Image.from_picture(np.zeros((32, 32), np.float32)))
    filtered = Predictor(fitted(SCORES["l1"], network=VAE, foreground={"above": 0.5}, median=3))
    assert filtered(Image.from_picture(bright)).image.pixels.max() < map_.max()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_image_and_a_tiny_one_have_finite_scores(value: float) -> None:
    package = fitted(*SCORES.values(), {"kind": "statistics"})
    for shape in ((45, 38), (5, 4)):
        scores = Predictor(package)(Image.from_picture(np.full(shape, value, np.float32))).scores
        assert np.isfinite(list(scores.values())).all()


def test_a_score_that_is_no_number_is_an_error() -> None:
    package = fitted({"kind": "residual"}, {"kind": "statistics"}, network=VAE)
    broken = {
        name: values * np.nan if name.startswith("scores.") else values for name, values in package.weights.items()
    }
    with pytest.raises(UnfitImage, match="score statistics of this image is not a number"):
        Predictor(ModelPackage.seal(package.card, broken))(smooth(1))


def test_parts_are_weights_and_a_package_without_them_is_refused(tmp_path: Any) -> None:
    package = fitted(*SCORES.values())
    package.save(tmp_path / "p")
    again = ModelPackage.load(tmp_path / "p")
    assert Predictor(again)(smooth(7)).scores == Predictor(package)(smooth(7)).scores
    bare = {name: values for name, values in package.weights.items() if not name.startswith("scores.neighbours")}
    with pytest.raises(PackageError, match="neighbours_code_mean has no fitted parts"):
        Predictor(ModelPackage.seal(package.card, bare))


def test_the_same_seed_fits_the_same_parts() -> None:
    one, again = fitted(*SCORES.values()), fitted(*SCORES.values())
    assert one.digest == again.digest


def test_cards_of_format_1_are_read() -> None:
    old = {"kind": "anomaly", "residual": "l1", "reducer": "top_percent", "top_percent": 20}
    task = Anomaly.model_validate(old)
    assert task.score_name == "l1_top_percent" and task.scores[0].reducer == TopPercent(percent=20)  # type: ignore
    package = untrained_package(Anomaly(), VAE)  # type: ignore[arg-type]
    card = package.card.model_dump(mode="json") | {"format": 1, "task": {"kind": "anomaly", "residual": "l2"}}
    assert Card.model_validate(card).task == Anomaly()


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([{"kind": "residual"}, {"kind": "residual"}], "two scores are called l2_mean"),
        ([{"kind": "statistics"}], "must have a map"),
        ([{"kind": "residual"}, {"kind": "rank_average", "members": ["l2_mean", "x"]}], "x is none of"),
        ([{"kind": "nll"}, {"kind": "statistics", "members": ["nll_mean"]}], "nll_mean, a log density itself, can be"),
    ],
)
def test_scores_that_do_not_hold_together_are_refused(scores: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Anomaly.model_validate({"kind": "anomaly", "scores": scores})


def experiment(scores: list[dict[str, Any]], network: dict[str, Any], objectives: list[dict[str, Any]]) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "a",
            "data": {"kind": "sample", "name": "anomaly-tiles"},
            "preparation": {"channels": 3},
            "task": {"kind": "anomaly", "scores": scores},
            "network": network,
            "objectives": objectives,
        }
    )


def test_a_score_that_the_network_cannot_have_is_refused() -> None:
    for score, network, said in (
        (SCORES["kl"], {"kind": "conv_autoencoder"}, "a distribution: vae"),
        (SCORES["nll"], VAE, "decoder gaussian"),
    ):
        with pytest.raises(ValidationError, match=said):
            experiment([score], network, [{"kind": "mse"}])


def test_a_score_of_what_was_not_trained_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    network = {"kind": "conv_autoencoder"}
    experiment([SCORES["l2"]], network, [{"kind": "mse"}])
    assert not caplog.text
    experiment([SCORES["l2"]], network, [{"kind": "ssim"}])
    assert "l2_mean does not measure what ssim trains" in caplog.text


@pytest.mark.parametrize("score", ["l2", "variance_head", "elbo", "restoration"])
def test_residuals_of_a_network_trained_on_features_are_warned_of(score: str, caplog: pytest.LogCaptureFixture) -> None:
    told = {"kind": score} if score != "l2" else SCORES["l2"]
    kl = {"kind": "kl"}
    experiment([told], VAE, [{"kind": "mse"}, kl])
    assert not caplog.text
    experiment([told], VAE, [{"kind": "perceptual"}, kl])
    assert "does not measure what perceptual trains" in caplog.text


def test_a_foreground_that_nothing_is_in_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"no intensity is above .* and below .*: exchange both"):
        Anomaly.model_validate({"kind": "anomaly", "foreground": {"above": 0.9, "below": 0.1}})


def test_the_union_knows_every_score() -> None:
    kinds = TypeAdapter(ScoreConfig).json_schema()["discriminator"]["mapping"]
    assert {score["kind"] for score in SCORES.values()} | {"statistics", "rank_average"} <= set(kinds)


def test_whitening_is_that_of_the_covariance() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 50, 4)) @ np.diag([1.0, 2, 3, 4])
    rows -= rows.mean(1, keepdims=True)
    white = whitening_of(rows, 0.0)
    for place in range(3):
        np.testing.assert_allclose(white[place].T @ white[place] @ np.cov(rows[place].T), np.eye(4), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_fewer_rows_than_features_have_a_whitening(scale: float) -> None:
    rows = scale * np.random.default_rng(0).normal(size=(10, 64))
    assert np.isfinite(whitening_of(rows - rows.mean(0), 0.0)).all()
