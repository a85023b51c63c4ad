"""On a CUDA device: training in bfloat16, and answers that are those of the CPU but for bfloat16's rounding."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medae.backends.torch import CUDA_BATCH, TorchBackend, limit_memory
from medae.errors import LimitExceeded
from medae.experiment import Experiment
from medae.image import Geometry, Image
from medae.networks import Codes, NetworkSettings, VQVAESettings
from medae.networks.pooling import pool, unpool
from medae.networks.quantisers import EMASettings, FSQSettings
from medae.predictor import Predictor
from medae.tasks import Restoration
from medae.training import train
from tests.conftest import tilted_affine, untrained_package
from tests.networks_small import EACH, built, name, noise, sized
from tests.training_toys import (
    TRAINING,
    anomaly,
    codes,
    denoising,
    disc_pictures,
    lines,
    require_same_end,
    segmentation,
)

pytestmark = pytest.mark.gpu

NETWORKS: list[dict[str, Any]] = [
    {"kind": "unet", "features": [4, 6, 8], "strides": [2, 2], "residual_units": 1},
    {"kind": "segnet", "features": [4, 6], "convolutions": [1, 2]},
    {"kind": "conv_autoencoder", "features": [6, 8]},
    {"kind": "dncnn", "depth": 4, "features": 4, "pixel_unshuffle": 2},
    {"kind": "vae", "features": [4, 6], "latent_channels": 3},
]
kinds = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["kind"])


def apart(near: NDArray[Any], far: NDArray[Any]) -> float:
    """Norm of the difference, of the norm of what is right."""
    return float(np.linalg.norm(near - far) / np.linalg.norm(far))


@pytest.mark.parametrize("settings", EACH, ids=name)
def test_full_precision_says_what_the_cpu_says(settings: NetworkSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    # the matrix units' own float32 mode is the default of convolutions
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = built(settings)
    x = noise(3, 2, *sized(settings, 40, 24, 16))
    with torch.no_grad():
        far = network(x)
        near = network.cuda()(x.cuda()).cpu()
    if isinstance(settings, VQVAESettings):  # rounding may choose another entry here and there
        assert ((near - far).abs().amax(1) > 1e-3).float().mean() < 0.05
    else:
        assert apart(near.numpy(), far.numpy()) < 1e-4


@kinds
@pytest.mark.parametrize("dims", [2, 3])
def test_answers_are_those_of_the_cpu(network: dict[str, Any], dims: int) -> None:
    """Whole and in tiles, in bfloat16."""
    package = untrained_package(Restoration(), network | {"dims": dims})
    shape = (2, 150, 131) if dims == 2 else (61, 90, 75)
    image = Image(np.random.default_rng(0).random((1, *shape), np.float32), Geometry(shape, tilted_affine()))
    small = (2 * package.card.receptive_field.halo + 12) ** dims
    right = Predictor(package, device="cpu")(image).image.pixels
    for voxels in ({}, {"tile_voxels": small}):
        assert apart(Predictor(package, device="cuda", **voxels)(image).image.pixels, right) < 0.02


@kinds
def test_a_tile_alone_and_in_company_gives_equal_bits(network: dict[str, Any]) -> None:
    backend = TorchBackend.from_package(untrained_package(Restoration(), network), "cuda")
    tiles = np.random.default_rng(0).random((2 * CUDA_BATCH + 1, 1, 64, 48), np.float32)
    together = backend.run(tiles)
    for order in (slice(None), slice(None, None, -1)):
        alone = np.concatenate([backend.run(tile[None]) for tile in tiles[order]])
        assert np.array_equal(alone, together[order])


def test_what_the_device_has_not_is_refused_and_the_next_is_answered() -> None:
    backend = TorchBackend.from_package(untrained_package(Restoration(), NETWORKS[0]), "cuda")
    tile = np.zeros((1, 1, 4096, 4096), np.float32)
    torch.cuda.empty_cache()
    limit_memory("cuda", 2**28)
    try:
        with pytest.raises(LimitExceeded, match="memory"):
            backend.run(tile)
        assert backend.run(tile[..., :64, :64]).shape == (1, 1, 64, 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert backend.run(tile[..., :2048, :2048]).shape == (1, 1, 2048, 2048)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_places_of_maxima_are_those_of_torch(dims: int, kind: torch.dtype) -> None:
    size = (23, 17, 9)[:dims]
    x = torch.randn(2, 8, *size, device="cuda").to(kind).requires_grad_()
    weights = torch.randn_like(x)
    pooling, unpooling = [(nn.MaxPool2d, nn.MaxUnpool2d), (nn.MaxPool3d, nn.MaxUnpool3d)][dims - 2]

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        maxima, places = pool(x)
        assert places.dtype == torch.uint8
        return maxima, unpool(maxima * 2, places, size)

    def theirs(x: Tensor) -> tuple[Tensor, Tensor]:
        maxima, indices = pooling(2, return_indices=True)(x)
        return maxima, unpooling(2)(maxima * 2, indices, output_size=size)

    for last in (False, True):
        if last:
            x = x.detach().to(memory_format=(torch.channels_last, torch.channels_last_3d)[dims - 2]).requires_grad_()
        made, right = ours(x), theirs(x)
        assert all(torch.equal(*pair) for pair in zip(made, right, strict=True))
        gradients = [torch.autograd.grad((low * 3).sum() + (high * weights).sum(), x)[0] for low, high in (made, right)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("settings", [EMASettings(codes=32, channels=4), FSQSettings(levels=(5, 4, 3))], ids=str)
def test_quantisers_learn_the_same_book(settings: Any) -> None:
    torch.manual_seed(0)
    far, near = settings.build(), settings.build().cuda()
    z = torch.randn(4, far.channels, 16, 16)
    with torch.no_grad():
        far.train()(z)  # its first entries are drawn at random
        near.load_state_dict(far.state_dict())
        for _ in range(3):
            one, other = far(z), near.train()(z.cuda())
            assert isinstance(other, Codes) and other.indices.is_cuda
            assert (one.indices == other.indices.cpu()).float().mean() > 0.99
    for key, value in far.state_dict().items():
        torch.testing.assert_close(near.state_dict()[key].cpu(), value, rtol=1e-2, atol=1e-2)


STACKED = {"kind": "conv_autoencoder", "features": [4, 6], "bottleneck": 3}
PRIOR = {"width": 8, "depth": 1, "heads": 2, "steps": 6, "validate_every": 3, "batch_size": 2}


def trainings(root: Path) -> dict[str, Experiment]:
    """One for each task and each kind of latent, and what only some networks do in training."""
    settings = {"device": "cuda", "workers": 2, "pictures": 0}

    def changed(experiment: Experiment, **more: Any) -> Experiment:
        return Experiment.model_validate(experiment.model_dump(mode="json") | more)

    segmenting = segmentation(root, **settings)
    return {
        "unet": segmenting,
        "segnet": changed(segmenting, network={"kind": "segnet", "features": [4, 8], "convolutions": [1, 1]}),
        "dncnn": denoising(root, **settings),
        "vae": anomaly(root, **settings),
        "vqvae": codes(root, prior=PRIOR, **settings),
        "layer by layer": changed(
            anomaly(root, **settings),
            network=STACKED,
            objectives=[{"kind": "mse"}],
            training=TRAINING | settings | {"layer_wise": 0.5, "ema": None},
        ),
    }


@pytest.mark.parametrize("kind", ["unet", "segnet", "dncnn", "vae", "vqvae", "layer by layer"])
def test_a_training_repeats_itself_and_its_model_runs_on_the_cpu(kind: str, tmp_path: Path) -> None:
    root = disc_pictures(tmp_path / "discs")
    experiment = trainings(root)[kind]
    with warnings.catch_warnings():
        # torch names what it cannot promise to repeat; that this does repeat is what is tested
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        packages = [train(experiment, tmp_path / run, progress=False) for run in ("one", "other")]
    require_same_end(tmp_path / "one", tmp_path / "other")
    assert all(np.isfinite(line["train"]["loss"]) for line in lines(tmp_path / "one") if "train" in line)
    image = Image(np.random.default_rng(0).random((1, 1, 64, 48), np.float32), Geometry((1, 64, 48), np.eye(4)))
    near, far = (Predictor(packages[0], device=device)(image) for device in ("cuda", "cpu"))
    if kind in ("unet", "segnet"):
        assert (near.image.pixels == far.image.pixels).mean() > 0.95
    elif kind != "vqvae":
        assert apart(near.image.pixels, far.image.pixels) < 0.1
