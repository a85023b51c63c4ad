"""Noise has the moments that theory gives it, the same in torch and in numpy, and follows from its seed."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from medae.data.corruption import (
    BlobNoise,
    CoarseNoise,
    Corruption,
    CorruptionConfig,
    GaussianNoise,
    PoissonNoise,
    RicianNoise,
)

SMOOTH = [CoarseNoise(level=0.2), BlobNoise(level=0.2, cell=5)]
ALL = [GaussianNoise(level=0.1), PoissonNoise(level=30), RicianNoise(level=0.1), *SMOOTH]
BLIND = [GaussianNoise(level=(0.02, 0.2)), PoissonNoise(level=(5, 200)), RicianNoise(level=(0.02, 0.2))]
N = 200_000


def in_torch(corruption: Corruption, value: float, count: int = N) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return corruption(torch.full((1, 1, count), value), generator).numpy()[0, 0]


def in_numpy(corruption: Corruption, value: float, count: int = N) -> np.ndarray:
    return corruption.add_to(np.full(count, value, np.float32), seed=3)


@pytest.mark.parametrize("draw", [in_torch, in_numpy])
@pytest.mark.parametrize("value", [0.2, 0.9])
def test_gaussian_moments(draw, value):
    noise = draw(GaussianNoise(level=0.1), value) - value
    assert abs(noise.mean()) < 5 * 0.1 / np.sqrt(N)
    assert noise.std() == pytest.approx(0.1, rel=0.01)
    kurtosis = np.mean(noise.astype(float) ** 4) / np.mean(noise.astype(float) ** 2) ** 2
    assert kurtosis == pytest.approx(3, abs=0.06)


@pytest.mark.parametrize("draw", [in_torch, in_numpy])
@pytest.mark.parametrize(("value", "peak"), [(0.2, 30.0), (0.9, 5.0)])
def test_poisson_moments(draw, value, peak):
    noisy = draw(PoissonNoise(level=peak), value)
    assert noisy.mean() == pytest.approx(value, rel=0.01)
    assert noisy.var() == pytest.approx(value / peak, rel=0.02)
    assert np.allclose(noisy * peak, np.rint(noisy * peak), atol=1e-3), "photons come whole"


@pytest.mark.parametrize("draw", [in_torch, in_numpy])
def test_rician_is_rayleigh_where_there_is_no_signal(draw):
    noisy = draw(RicianNoise(level=0.1), 0.0)
    assert noisy.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.01)
    assert noisy.var() == pytest.approx(0.01 * (2 - np.pi / 2), rel=0.02)


@pytest.mark.parametrize("draw", [in_torch, in_numpy])
def test_rician_second_moment(draw):
    noisy = draw(RicianNoise(level=0.1), 0.3).astype(float)
    assert np.mean(noisy**2) == pytest.approx(0.3**2 + 2 * 0.1**2, rel=0.01)


def test_gaussian_is_the_published_protocol():
    clean = np.linspace(0, 1, 60).reshape(1, 1, 6, 10)
    expected = clean + np.random.default_rng(7).standard_normal(clean.shape) * 25 / 255
    np.testing.assert_allclose(GaussianNoise(level=25 / 255).add_to(clean, seed=7), expected, atol=1e-7)


@pytest.mark.parametrize("corruption", ALL + BLIND, ids=str)
def test_a_seed_decides_everything(corruption):
    clean = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    first, again, other = (corruption(clean, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == clean.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    pixels = clean.numpy()
    assert np.array_equal(corruption.add_to(pixels, 1), corruption.add_to(pixels, 1))
    assert not np.array_equal(corruption.add_to(pixels, 1), corruption.add_to(pixels, 2))


@pytest.mark.parametrize("corruption", ALL, ids=lambda c: c.kind)
def test_clean_input_is_left_alone_and_noisy_is_not_clipped(corruption):
    clean = torch.ones(2, 1, 64, 64)
    before = clean.clone()
    noisy = corruption(clean, torch.Generator().manual_seed(0))
    assert torch.equal(clean, before)
    assert noisy.max() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_is_kept(dtype):
    assert ALL[0](torch.rand(1, 1, 8, 8).to(dtype), torch.Generator()).dtype == dtype


def test_blind_levels_differ_between_samples_and_fill_their_range():
    clean = torch.full((300, 1, 40, 40), 0.5)
    measured = GaussianNoise(level=(0.05, 0.2))(clean, torch.Generator().manual_seed(0)).std(dim=(1, 2, 3))
    assert 0.045 < measured.min() < 0.06
    assert 0.19 < measured.max() < 0.21
    assert measured.mean() == pytest.approx(0.125, abs=0.01)
    variance = PoissonNoise(level=(10, 1000))(clean, torch.Generator().manual_seed(0)).var(dim=(1, 2, 3))
    assert (0.5 / variance).log10().mean() == pytest.approx(2, abs=0.12), "uniform in the logarithm"


def test_blind_levels_in_numpy_follow_the_seed():
    clean = np.full((80, 80), 0.5)
    levels = [GaussianNoise(level=(0.05, 0.2)).add_to(clean, seed).std() for seed in range(60)]
    assert min(levels) < 0.07
    assert max(levels) > 0.18


def test_values_below_zero_have_no_photons():
    assert not PoissonNoise(level=10).add_to(np.full(50, -0.3), 0).any()
    assert not PoissonNoise(level=10)(torch.full((1, 1, 50), -0.3), torch.Generator()).any()


def smooth_noise(corruption: Corruption, shape: tuple[int, ...], way: str) -> np.ndarray:
    """(B, C, *spatial) of what is added to grey."""
    if way == "torch":
        return corruption(torch.full(shape, 0.5), torch.Generator().manual_seed(0)).numpy() - 0.5
    clean = np.full(shape[1:], 0.5)
    return np.stack([corruption.add_to(clean, seed) - 0.5 for seed in range(shape[0])])


@pytest.mark.parametrize("way", ["torch", "numpy"])
@pytest.mark.parametrize("shape", [(400, 2, 40, 31), (60, 1, 20, 24, 17)], ids=["2-D", "3-D"])
def test_smooth_noise_has_its_level_no_mean_and_neighbours(shape, way):
    dims = len(shape) - 2
    expected = {"coarse": 0.2 * (2 / 3) ** (dims / 2), "blob": 0.2}
    for corruption in SMOOTH:
        noise = smooth_noise(corruption, shape, way)
        assert noise.std() == pytest.approx(expected[corruption.kind], rel=0.1)
        assert abs(noise.mean()) < 0.02
        for axis in range(2, noise.ndim):
            near = np.corrcoef(
                noise.take(range(1, noise.shape[axis]), axis).ravel(),
                noise.take(range(noise.shape[axis] - 1), axis).ravel(),
            )
            assert near[0, 1] > 0.8
        for first in range(0, shape[0] - 1, 10):  # samples and channels are strangers
            assert not np.allclose(noise[first], noise[first + 1])
        kurtosis = np.mean(noise.astype(float) ** 4) / np.mean(noise.astype(float) ** 2) ** 2
        assert (kurtosis > 8) == (corruption.kind == "blob"), "most of it leaves the image alone"


@pytest.mark.parametrize("way", ["torch", "numpy"])
def test_coarse_noise_is_linear_between_draws_and_the_grid_moves(way):
    noise = smooth_noise(CoarseNoise(level=1.0, cell=8), (6, 1, 64, 64), way)
    bends = [np.flatnonzero(np.abs(np.diff(one[0, 5], 2)) > 1e-4) for one in noise]
    for places in bends:
        assert len(places) <= 18  # 8 draws along a row; each bend lies between two voxels
    assert len({int(places[0]) for places in bends}) > 1


def test_a_picture_has_no_slices_to_be_smooth_along():
    clean = np.full((3, 1, 40, 40), 0.5)
    stds = [BlobNoise(level=0.2, cell=5).add_to(clean, seed).std() for seed in range(200)]
    assert np.mean(np.square(stds)) ** 0.5 == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("corruption", [type(one)(level=0.2, background=0.0) for one in SMOOTH], ids=lambda c: c.kind)
def test_the_background_stays_black(corruption):
    clean = torch.zeros(3, 2, 30, 30)
    clean[:, 1, 5:20, 8:25] = 0.4  # one channel is enough
    changed = corruption(clean, torch.Generator().manual_seed(0)) != clean
    inside = (clean > 0).any(1, keepdim=True).expand_as(clean)
    assert not changed[~inside].any()
    assert changed[inside].float().mean() > 0.99
    in_numpy = corruption.add_to(clean[0].numpy(), 1) != clean[0].numpy()
    assert not in_numpy[~inside[0].numpy()].any() and in_numpy[inside[0].numpy()].mean() > 0.99


def test_integers_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        ALL[0].add_to(np.zeros((4, 4), np.uint8), 0)


@pytest.mark.parametrize("bad", [{"level": 0}, {"level": -1}, {"level": (0.3, 0.1)}, {"level": 0.1, "sigma": 1}, {}])
def test_settings_that_do_not_hold(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(CorruptionConfig).validate_python({"kind": "gaussian", **bad})


def test_the_union_is_chosen_by_kind():
    for corruption in ALL + BLIND:
        assert TypeAdapter(CorruptionConfig).validate_python(corruption.model_dump(mode="json")) == corruption


@pytest.mark.gpu
@pytest.mark.parametrize("corruption", ALL + BLIND, ids=str)
def test_on_the_accelerator(corruption):
    clean = torch.rand(4, 3, 32, 32, device="cuda")
    near = corruption(clean, torch.Generator("cuda").manual_seed(0))
    far = corruption(clean, torch.Generator().manual_seed(0))
    assert near.device == far.device == clean.device
    np.testing.assert_allclose(
        far.cpu().numpy(), corruption(clean.cpu(), torch.Generator().manual_seed(0)).numpy(), atol=1e-6
    )
