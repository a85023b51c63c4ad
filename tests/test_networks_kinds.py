"""What each network promises beside the laws of all, and the settings of them all."""

import pkgutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import medae.networks
from medae.errors import SettingsError
from medae.networks import DnCNNSettings, NetworkConfig, NetworkSettings, SegNetSettings, UNetSettings
from medae.networks.dncnn import pixel_shuffle, pixel_unshuffle
from medae.settings import Settings, validate_settings
from tests.networks_small import KINDS, SMALL, built, kinds, noise, varied


@pytest.mark.parametrize("dims", [2, 3])
def test_segnet_puts_each_maximum_back_where_it_was(dims: int) -> None:
    network = SegNetSettings(features=(4,), convolutions=(1,), dims=dims).build(1, 1)
    maps = noise(1, 4, *[6] * dims)
    pooled, indices = network.pool(maps)
    placed = network.unpool(pooled, indices)
    assert (placed != 0).sum() == pooled.numel()
    assert torch.equal(placed[placed != 0], maps[placed != 0])


def test_dncnn_subtracts_the_noise_it_predicts() -> None:
    network = DnCNNSettings(**SMALL["dncnn"]).build(1, 1)
    last = network.noise[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.25)
    x = noise(1, 1, 5, 7)
    torch.testing.assert_close(network(x), x - 0.25)


def test_pixel_shuffles_are_those_of_torch_and_undo_each_other_in_3d() -> None:
    flat = noise(2, 3, 6, 8)
    assert torch.equal(pixel_unshuffle(flat, 2), nn.PixelUnshuffle(2)(flat))
    assert torch.equal(pixel_shuffle(pixel_unshuffle(flat, 2), 2), flat)
    deep = noise(2, 3, 4, 6, 8)
    shuffled = pixel_unshuffle(deep, 2)
    assert shuffled.shape == (2, 24, 2, 3, 4)
    assert torch.equal(shuffled[0, :8, 1, 2, 3], deep[0, 0, 2:4, 4:6, 6:8].flatten())
    assert torch.equal(pixel_shuffle(shuffled, 2), deep)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_unet_is_monais_where_sizes_fit(dims: int) -> None:
    from monai.networks.nets.unet import UNet

    network = built(UNetSettings(**SMALL["unet"], dims=dims), channels=2)
    theirs = UNet(dims, 2, 2, (4, 8, 8), (2, 2), num_res_units=2, norm="batch").eval()
    theirs.load_state_dict(network.get_submodule("core").state_dict())
    x = noise(1, 2, *[8] * dims)
    with torch.no_grad():
        assert torch.equal(network(x), theirs(x))


def test_only_building_a_unet_imports_monai() -> None:
    script = (
        "import sys, medae.networks as n; n.SegNetSettings().build(1, 1); n.UNetSettings().receptive_field();"
        "print('monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- settings


class Holder(Settings):
    network: NetworkConfig


def test_the_union_has_every_architecture_of_the_folder() -> None:
    files = {module.name for module in pkgutil.iter_modules(medae.networks.__path__)}
    kinds = {kind.model_fields["kind"].default for kind in KINDS}
    assert files - {"base", "blocks", "latent", "prior", "quantisers", "reach"} == kinds


@varied
def test_settings_survive_as_plain_data(settings: NetworkSettings) -> None:
    assert Holder.model_validate({"network": settings.model_dump(mode="json")}).network == settings


@kinds
def test_every_field_is_explained(kind: type[NetworkSettings]) -> None:
    assert [field for field, info in kind.model_fields.items() if field != "kind" and not info.description] == []


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ({"kind": "unett"}, "'unet', 'segnet'"),
        ({"kind": "unet", "chanels": 3}, "network.chanels: Extra inputs are not permitted"),
        ({"kind": "unet", "strides": [2]}, "4 levels (features) need 3 strides, got 1"),
        ({"kind": "unet", "strides": [2, 2, 3]}, "Input should be 1 or 2"),
        ({"kind": "unet", "residual_units": -1}, "greater than or equal to 0"),
        ({"kind": "unet", "dims": 4}, "Input should be 2 or 3"),
        ({"kind": "segnet", "convolutions": [2, 2]}, "3 stages (features) need 3 numbers of convolutions, got 2"),
        ({"kind": "segnet", "features": []}, "at least 1 item"),
        ({"kind": "conv_autoencoder", "bottleneck": 0}, "greater than 0"),
        ({"kind": "conv_autoencoder", "enlarge": "bicubic"}, "'upsample' or 'transposed'"),
        ({"kind": "dncnn", "depth": 1}, "greater than or equal to 2"),
        ({"kind": "dncnn", "pixel_unshuffle": 3}, "Input should be 1 or 2"),
        ({"kind": "vae", "latent_channels": 0}, "greater than 0"),
        ({"kind": "vqvae", "norm": "batch"}, "Input should be 'none'"),
        ({"kind": "vqvae", "quantiser": {"kind": "kmeans"}}, "'ema', 'fsq'"),
        ({"kind": "vqvae", "quantiser": {"kind": "ema", "codes": 1}}, "greater than or equal to 2"),
        ({"kind": "vqvae", "quantiser": {"kind": "fsq", "levels": [8, 1]}}, "greater than or equal to 2"),
        ({"kind": "vae", "norm": "layer"}, "'batch', 'instance', 'group' or 'none'"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(network: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError) as refused:
        validate_settings({"network": network}, Holder, "x.yaml")
    assert reason in str(refused.value)


def test_dncnn_refuses_other_channels_than_it_takes() -> None:
    with pytest.raises(SettingsError, match="3 -> 1"):
        DnCNNSettings().build(3, 1)
