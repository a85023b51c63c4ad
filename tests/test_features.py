"""Features tell images apart as they say; VGG16 is torchvision's, read from its files and nothing else."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medae.errors import SettingsError
from medae.features import FeatureDistance, FilterFeatures, VGG16Features, describe, distance_map, feature_distance
from medae.features.filters import UNIT, WAVELENGTH, gabor_bank
from medae.networks.base import Output
from medae.objectives import Loss, Perceptual


def noise(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, the classifier's too (small: they are not looked at)."""
    torch.manual_seed(0)
    widths = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(before, int(width), 3, padding=1), nn.ReLU(inplace=True)]
            before = int(width)
    state = {f"features.{name}": value for name, value in nn.Sequential(*layers).state_dict().items()}
    return state | {"classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module", params=["pth", "safetensors"])
def weights(request, vgg_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / f"vgg16.{request.param}"
    torch.save(vgg_state, path) if request.param == "pth" else save_file(vgg_state, path)
    return path


def kinds(weights):
    return [feature_distance(), feature_distance(weights)]


def test_vgg16_is_torchvisions(vgg_state, weights):
    """Layer by layer as torchvision's own `features` would run: indices 3, 8, 15 and 22 are the ReLUs of the paper."""
    x = noise((2, 3, 40, 33))
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen, expected = (x - mean) / deviation, []
    for index in range(23):
        if f"features.{index}.weight" in vgg_state:
            seen = nn.functional.conv2d(
                seen, vgg_state[f"features.{index}.weight"], vgg_state[f"features.{index}.bias"], padding=1
            )
        else:
            seen = nn.functional.max_pool2d(seen, 2) if index in (4, 9, 16) else seen.relu()
        if index in (3, 8, 15, 22):
            expected.append(seen)
    found = list(VGG16Features.from_file(weights).layers(x))
    assert [map_.shape[1] for map_ in found] == [64, 128, 256, 512]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(2, 3, 41, 36), (2, 1, 19, 26), (1, 2, 17, 9), (1, 1, 3, 24, 21)])
def test_the_loss_is_the_mean_of_a_map_with_its_peak_where_they_differ(shape, weights):
    x = noise(shape)
    changed = x.clone()
    changed[..., 4:9, 3:8] = 1 - changed[..., 4:9, 3:8]
    for distance in kinds(weights):
        assert distance(x, x).item() == 0
        apart = distance(x, changed)
        assert apart > 0
        where = distance.map(x, changed)
        assert where.shape == (shape[0], 1, *shape[2:])
        assert (where >= 0).all()
        inside = where[..., 4:9, 3:8].mean()
        assert inside > 2 * where.mean()
        assert where.mean().item() == pytest.approx(apart.item(), rel=0.35)  # coarse layers are enlarged in between


def test_a_volume_is_seen_slice_by_slice(weights):
    x, y = noise((2, 1, 3, 20, 17)), noise((2, 1, 3, 20, 17), 1)
    for distance in kinds(weights):
        one = torch.stack([distance.map(x[:, :, s], y[:, :, s]) for s in range(3)], 2)
        torch.testing.assert_close(distance.map(x, y), one)


def test_grey_is_grey_rgb_and_nothing_is_trained(weights):
    x, y = noise((1, 1, 24, 24)), noise((1, 1, 24, 24), 1)
    distance = feature_distance(weights)
    as_rgb = [image.expand(-1, 3, -1, -1) for image in (x, y)]
    assert distance(x, y).item() == pytest.approx(distance(*as_rgb).item(), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    x.requires_grad_()
    distance(x, y).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_filters_know_a_wave_whatever_its_phase_and_nothing_of_brightness():
    columns = torch.arange(48.0).expand(1, 1, 48, 48)
    waves = [UNIT * torch.sin(2 * torch.pi / WAVELENGTH * columns + phase) for phase in (0.0, 0.7, 2.0)]
    for wave in waves:
        energies = next(FilterFeatures().layers(wave))[0, 1:, 16:32, 16:32]
        assert energies[0].mean().item() == pytest.approx(1, abs=0.05)
        assert energies[0].std() < 0.05
        assert energies[2].max() < 0.2  # across
    assert gabor_bank().sum((1, 2)).abs().max() < 1e-5
    flat = next(FilterFeatures().layers(torch.full((1, 1, 20, 20), 0.7 * UNIT)))[0]
    assert flat[1:].abs().max() < 1e-5
    assert flat[0].min() == pytest.approx(0.7, abs=1e-5)


def test_blur_costs_more_than_shift_where_voxels_say_the_opposite():
    """What the perceptual objective is for. A texture, itself a little aside, and the grey that mse would answer."""
    columns = torch.arange(48.0).expand(1, 1, 48, 48)
    texture, aside = (0.5 + 0.3 * torch.sin(2 * torch.pi / WAVELENGTH * columns + at) for at in (0.0, 1.4))
    grey = torch.full_like(texture, 0.5)
    distance = feature_distance()
    assert distance(grey, texture) > 5 * distance(aside, texture)
    assert (grey - texture).square().mean() < (aside - texture).square().mean()


def test_the_map_for_numpy(weights):
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 3, 21, 30))
    for path in (None, weights):
        found = distance_map(x, y, path)
        assert found.dtype == np.float32 and found.shape == (1, 21, 30)
        tensors = [torch.from_numpy(image).float()[None] for image in (x, y)]
        np.testing.assert_allclose(found, feature_distance(path).map(*tensors)[0].numpy(), rtol=1e-5, atol=1e-7)
    frozen = x.copy()
    frozen.flags.writeable = False
    assert not distance_map(frozen, frozen).any()


def test_the_objective_weighs_a_tenth_and_says_which_features(weights):
    x, y = noise((1, 1, 24, 24)), noise((1, 1, 24, 24), 1)
    total, terms = Loss([Perceptual()])(Output(x, None), y, 1.0)
    assert total.item() == pytest.approx(0.1 * terms["perceptual"].item())
    assert terms["perceptual"].item() == pytest.approx(FeatureDistance(FilterFeatures())(x, y).item())
    assert "fixed filters" in Perceptual().described
    assert "VGG16" in Perceptual(weights=weights).described
    assert describe(weights) == describe(weights) != describe(weights.with_name("other.pth"))
    assert str(weights.parent) not in Perceptual(weights=weights).described


def test_files_that_are_no_vgg16(tmp_path, vgg_state):
    with pytest.raises(SettingsError, match="not at"):
        Perceptual(weights=tmp_path / "none.pth").build()
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(SettingsError, match="cannot be read"):
        Perceptual(weights=tmp_path / "text.pth").build()
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(SettingsError, match="cannot be read"):
        Perceptual(weights=tmp_path / "text.safetensors").build()
    torch.save({name: value for name, value in vgg_state.items() if "21" not in name}, tmp_path / "part.pth")
    with pytest.raises(SettingsError, match=r"features\.21\.weight"):
        Perceptual(weights=tmp_path / "part.pth").build()
    torch.save(nn.Conv2d(3, 3, 1), tmp_path / "code.pth")  # a pickled object is code
    with pytest.raises(SettingsError, match="cannot be read"):
        Perceptual(weights=tmp_path / "code.pth").build()
