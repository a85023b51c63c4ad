"""Predictor: tiles equal the whole image, answers lie where the input lay, and nothing depends on company."""

import subprocess
import sys

import numpy as np
import pytest

from medae.backends.torch import TorchBackend, choose_device
from medae.calibration import Calibration
from medae.errors import UnfitImage, UsageError
from medae.image import Geometry, Image
from medae.io.answer import Label
from medae.predictor import Predictor, check_call
from medae.preparation import Preparation, Window
from medae.tasks import Anomaly, Restoration, Segmentation
from tests.conftest import tilted_affine, untrained_package

NUCLEI = Segmentation(labels=(Label(name="nucleus", colour=(255, 0, 0)), Label(name="stroma", colour=(0, 255, 0))))
NETWORKS = [
    {"kind": "unet", "features": [4, 6, 8], "strides": [2, 2], "residual_units": 1},
    {"kind": "segnet", "features": [4, 6], "convolutions": [1, 2]},
    {"kind": "conv_autoencoder", "features": [6, 8]},
    {"kind": "dncnn", "depth": 4, "features": 4, "pixel_unshuffle": 1},
    {"kind": "dncnn", "depth": 4, "features": 4, "pixel_unshuffle": 2},
    {"kind": "vae", "features": [4, 6], "latent_channels": 3},
]


def network_id(network: dict[str, object]) -> str:
    return "-".join(str(value) for value in network.values())


def noise(*shape: int, seed: int = 0) -> Image:
    """A tilted volume of values in 0..1."""
    pixels = np.random.default_rng(seed).random((1, *shape), np.float32)
    return Image(pixels, Geometry(shape, tilted_affine()))


@pytest.mark.parametrize("network", NETWORKS, ids=network_id)
@pytest.mark.parametrize("dims", [2, 3])
def test_tiles_equal_the_whole_image(network: dict[str, object], dims: int) -> None:
    package = untrained_package(Restoration(), network | {"dims": dims})
    image = noise(3, 150, 131) if dims == 2 else noise(61, 90, 75)
    halo = package.card.receptive_field.halo
    whole = Predictor(package)(image)
    few = Predictor(package, tile_voxels=(2 * halo + 12) ** dims)
    seen: list[int] = []
    tiled = few(image, progress=lambda done, total: seen.append(total))
    assert seen[0] > image.geometry.shape[0] if dims == 2 else seen[0] > 1, "the image was cut at all"
    difference = np.abs(tiled.image.pixels - whole.image.pixels).max() / np.ptp(whole.image.pixels)
    assert difference < 1e-3
    assert tiled.image.pixels.shape == image.pixels.shape


@pytest.mark.parametrize("network", NETWORKS, ids=network_id)
def test_a_tile_alone_and_in_company_gives_equal_bits(network: dict[str, object]) -> None:
    backend = TorchBackend.from_package(untrained_package(Restoration(), network), "cpu")
    tiles = np.random.default_rng(0).random((4, 1, 64, 48), np.float32)
    together = backend.run(tiles)
    for tile, expected in zip(tiles, together, strict=True):
        np.testing.assert_array_equal(backend.run(tile[None])[0], expected)


def test_instance_norm_sees_the_whole_image_or_says_that_it_was_blended() -> None:
    package = untrained_package(Restoration(), {"kind": "unet", "features": [4, 6], "strides": [2], "norm": "instance"})
    image = noise(1, 200, 180)
    assert "blended_tiles" not in Predictor(package)(image).provenance
    assert Predictor(package, tile_voxels=100 * 100)(image).provenance["blended_tiles"]


def test_blended_tiles_of_a_network_without_norm_equal_the_whole_image() -> None:
    package = untrained_package(Restoration(), {"kind": "dncnn", "depth": 3, "features": 4, "norm": "none"})
    field = package.card.receptive_field.model_copy(update={"tileable": False})
    blended = type(package).seal(package.card.model_copy(update={"receptive_field": field}), package.weights)
    image = noise(1, 200, 180)
    inner = (slice(None), slice(None), slice(0, 100), slice(0, 100))  # away from no edge but the image's own
    a = Predictor(blended, tile_voxels=130 * 130)(image).image.pixels[inner]
    b = Predictor(package)(image).image.pixels[inner]
    np.testing.assert_allclose(a, b, atol=0.05)


@pytest.mark.parametrize(
    "network",
    [
        {"kind": "dense_autoencoder", "size": [20, 28], "widths": [5]},
        {"kind": "conv_autoencoder", "features": [4, 6], "size": [20, 28]},
        {"kind": "vae", "features": [4, 6], "size": [20, 28]},
    ],
    ids=network_id,
)
def test_a_network_of_one_size_gets_whole_images_of_it(network: dict[str, object]) -> None:
    predictor = Predictor(untrained_package(Anomaly(), network), tile_voxels=64)
    image = noise(3, 20, 28)
    prediction = predictor(image)
    assert prediction.image.pixels.shape == image.pixels.shape
    assert "blended_tiles" not in prediction.provenance
    with pytest.raises(UnfitImage, match="takes images of 20 x 28 only, and this one is 20 x 32 on the model's grid"):
        predictor(noise(3, 20, 32))


@pytest.mark.parametrize("shape", [(5, 33, 47), (1, 20, 64)])
def test_answers_lie_where_the_input_lay(shape: tuple[int, int, int]) -> None:
    preparation = Preparation(orientation="SPL", spacing_mm=(1, 1, 1), intensity=Window(lower=0, upper=1))
    package = untrained_package(NUCLEI, {"kind": "segnet", "features": [4, 4], "convolutions": [1, 1]}, preparation)
    image = noise(*shape)
    prediction = Predictor(package)(image, probabilities=True)
    prediction.image.geometry.require_same_grid(image.geometry)
    assert prediction.probabilities is not None
    prediction.probabilities.geometry.require_same_grid(image.geometry)
    assert prediction.image.pixels.dtype == np.uint8 and prediction.image.source is image.source


def test_a_drawn_voxel_is_found_where_it_was_drawn() -> None:
    """The identity network (dncnn of zero weights) through another orientation, spacing and back."""
    preparation = Preparation(orientation="RAS", spacing_mm=(2.5, 1.1, 0.8))
    package = untrained_package(Restoration(), {"kind": "dncnn", "depth": 2, "features": 4}, preparation)
    silent = type(package).seal(package.card, {name: value * 0 for name, value in package.weights.items()})
    pixels = np.zeros((1, 9, 21, 17), np.float32)
    pixels[0, 3:5, 6:9, 10:13] = 1
    image = Image(pixels, Geometry((9, 21, 17), tilted_affine()))
    answer = Predictor(silent)(image).image
    assert np.unravel_index(answer.pixels.argmax(), pixels.shape) in [
        (0, s, r, w) for s in (3, 4) for r in (6, 7, 8) for w in (10, 11, 12)
    ]


def test_probabilities_and_labels_agree() -> None:
    package = untrained_package(NUCLEI, {"kind": "segnet", "features": [4, 4], "convolutions": [1, 1]})
    prediction = Predictor(package, tile_voxels=60 * 60)(noise(2, 90, 77), probabilities=True)
    assert prediction.probabilities is not None
    soft = prediction.probabilities.pixels
    assert soft.shape == (2, 2, 90, 77) and soft.min() >= 0 and soft.sum(0).max() <= 1 + 1e-5
    every = np.concatenate([1 - soft.sum(0, keepdims=True), soft])
    sure = np.sort(every, 0)[-1] - np.sort(every, 0)[-2] > 1e-4
    np.testing.assert_array_equal(prediction.image.pixels[0][sure], every.argmax(0)[sure])


def test_scores_are_placed_among_the_references() -> None:
    package = untrained_package(Anomaly(), {"kind": "vae", "features": [4, 4]})
    image = noise(1, 32, 32)
    score = Predictor(package)(image).scores["l2_mean"]
    assert Predictor(package)(image).percentile is None
    with pytest.raises(UsageError, match="no calibration"):
        Predictor(package)(image, threshold=0.1)
    for reference, decision in ((score * 0.5, "anomalous"), (score * 2, "normal")):
        calibration = Calibration.from_scores({"l2_mean": [reference] * 500}, package_digest=package.digest)
        prediction = Predictor(package.calibrated(calibration))(image, threshold=0.1)
        assert prediction.decision == decision
        assert prediction.percentile == (100 if decision == "anomalous" else 0)


def test_what_a_model_cannot_take_is_refused_with_words() -> None:
    flat = Predictor(untrained_package(Restoration(), {"kind": "unet", "features": [4, 4, 4, 4], "strides": [2, 2, 2]}))
    with pytest.raises(UnfitImage, match="at least"):
        flat(noise(1, 1, 1))
    deep = Predictor(untrained_package(Restoration(), {"kind": "unet", "features": [4, 4], "strides": [2], "dims": 3}))
    with pytest.raises(UnfitImage, match="single slice"):
        deep(noise(1, 32, 32))
    thick = untrained_package(
        Restoration(), {"kind": "dncnn", "depth": 2, "features": 4, "dims": 3}, Preparation(spacing_mm=(0.5, 1, 1))
    )
    with pytest.raises(UnfitImage, match="single slice"):  # of 2.5 mm: resampling would make five of it
        Predictor(thick)(noise(1, 32, 32))
    with pytest.raises(UsageError, match="no threshold"):
        flat(noise(1, 32, 32), threshold=0.5)
    with pytest.raises(UsageError, match="probabilities"):
        flat(noise(1, 32, 32), probabilities=True)


def test_answers_that_are_not_numbers_are_no_answers() -> None:
    package = untrained_package(NUCLEI, {"kind": "segnet", "features": [4, 4], "convolutions": [1, 1]})
    broken = {name: value * np.nan if value.ndim == 4 else value for name, value in package.weights.items()}
    predictor = Predictor(type(package).seal(package.card, broken))
    with pytest.raises(UnfitImage, match="not numbers"):
        predictor(noise(1, 32, 32))


def test_a_rate_that_the_references_cannot_tell_is_refused_before_any_work() -> None:
    package = untrained_package(Anomaly(), {"kind": "vae", "features": [4, 4]})
    calibration = Calibration.from_scores({"l2_mean": [0.5] * 500}, package_digest=package.digest)
    check_call(package.calibrated(calibration), threshold=0.002)
    with pytest.raises(UsageError, match="cannot be told from 500"):
        check_call(package.calibrated(calibration), threshold=0.001)


def test_work_can_be_stopped_between_two_tiles() -> None:
    package = untrained_package(Restoration(), {"kind": "dncnn", "depth": 2, "features": 4})

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        Predictor(package)(noise(5, 16, 16), progress=stop)


def test_a_device_that_is_not_here_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    for device in ("tpu", "cuda:99", "meta"):
        with pytest.raises(UsageError, match="device"):
            choose_device(device)


def test_importing_the_predictor_loads_no_torch() -> None:
    code = "import sys, medae.predictor, medae.answers; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
