"""What each network promises beside the laws of all, and the settings of them all."""

import pkgutil
import subprocess
import sys
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import medae.networks
from medae.errors import SettingsError
from medae.networks import (
    ConvAutoencoderSettings,
    DenseAutoencoderSettings,
    DnCNNSettings,
    NetworkConfig,
    NetworkSettings,
    SegNetSettings,
    StackedAutoencoder,
    UNetSettings,
    VAESettings,
)
from medae.networks.blocks import Residual
from medae.networks.dncnn import pixel_shuffle, pixel_unshuffle
from medae.settings import Settings, validate_settings
from tests.networks_small import KINDS, SMALL, VARIED, built, kinds, noise, sized, varied


@pytest.mark.parametrize(("widths", "tied"), [((5,), True), ((5,), False), ((9, 40, 3), True), ((9, 40, 3), False)])
def test_a_dense_autoencoder_has_the_widths_that_it_was_given(widths: tuple[int, ...], tied: bool) -> None:
    network = DenseAutoencoderSettings(size=(4, 6), widths=widths, tied=tied).build(2, 2)
    ends = [48, *widths]
    weights = sum(a * b for a, b in pairwise(ends)) * (1 if tied else 2)
    assert sum(values.numel() for values in network.parameters()) == weights + sum(ends[1:]) + sum(ends[:-1])
    assert network.encode(noise(3, 2, 4, 6)).z.shape == (3, widths[-1], 1, 1)


def test_encoder_and_decoder_can_be_used_apart() -> None:
    network = built(DenseAutoencoderSettings(size=(4, 6), widths=(9, 3), tied=True))
    x = noise(3, 2, 4, 6)
    encoder, decoder = deepcopy(network.encoder), deepcopy(network.decoder)
    with torch.no_grad():
        assert torch.equal(decoder(encoder(x)), network(x))


def test_tied_weights_are_one_and_stay_so() -> None:
    network = deepcopy(DenseAutoencoderSettings(size=(3, 3), widths=(4,), tied=True, activation="linear").build(1, 1))
    with torch.no_grad():
        for values in network.parameters():
            values.normal_()
    x = noise(5, 1, 3, 3)
    weight, bias, other = network.parameters()
    expected = (x.flatten(1) @ weight.T + bias) @ weight + other
    torch.testing.assert_close(network(x), expected.view_as(x))
    with pytest.raises(SettingsError, match="as many channels as they take, not 3 -> 1"):
        DenseAutoencoderSettings(size=(3, 3), tied=True).build(3, 1)


def test_stages_within_each_other_are_the_network() -> None:
    for settings in (s for s in VARIED if s.kind in ("dense_autoencoder", "conv_autoencoder")):
        network = built(settings)
        assert isinstance(network, StackedAutoencoder)
        x = noise(2, 2, *sized(settings, 8, 8, 8))
        with torch.no_grad():
            codes = [x]
            for stage in network.stages:
                codes.append(stage.encoder(codes[-1]))
                assert stage.decoder(codes[-1]).shape == codes[-2].shape
            assert torch.equal(codes[-1], network.encode(x).z)


DROPPING: list[NetworkSettings] = [
    SegNetSettings(features=(4, 4, 4, 4), convolutions=(1,) * 4, dropout=0.5),
    ConvAutoencoderSettings(features=(4, 4, 4, 4), dropout=0.5),
    VAESettings(features=(4, 4, 4, 4), dropout=0.5),
]


@pytest.mark.parametrize("settings", DROPPING, ids=lambda settings: settings.kind)
def test_dropout_is_in_the_three_deepest_stages_both_ways(settings: NetworkSettings) -> None:
    network = built(settings)
    drops = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    seen: list[tuple[int, ...]] = []
    for module in drops:
        module.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    x = noise(1, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        for module in drops:  # as Monte-Carlo uncertainty does: only what draws is set to training
            module.train()
        assert not torch.equal(network(x), network(x))
    # 32 is pooled to 16, 8, 4, 2; the stage at 32 has none
    assert {size for size, _ in seen} == {2, 4, 8, 16}
    assert len(seen) == 4 * 6


def test_a_shortcut_carries_what_convolutions_lose() -> None:
    block = Residual(2, (3, 5, 3), "batch").eval()
    with torch.no_grad():
        block.body[-1].weight.zero_()
        x = noise(1, 3, 4, 4)
        assert torch.equal(block(x), x)


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
    assert files - {"base", "blocks", "latent", "pooling", "prior", "quantisers", "reach"} == kinds


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
        ({"kind": "vae", "size": [30, 32]}, "size must be a multiple of the stride, 8, along each axis; got [30, 32]"),
        ({"kind": "vae", "size": [8, 32, 32]}, "the network is 2-D, so size is (rows, columns); got [8, 32, 32]"),
        ({"kind": "segnet", "size": [32, 32]}, "a flat code (size) needs a length: give bottleneck"),
        ({"kind": "dense_autoencoder"}, "network.size: Field required"),
        ({"kind": "dense_autoencoder", "size": [28]}, "network.size"),
        ({"kind": "dense_autoencoder", "size": [28, 28], "widths": []}, "at least 1 item"),
        ({"kind": "dense_autoencoder", "size": [8, 8], "norm": "group"}, "'batch' or 'none'"),
        (
            {"kind": "dense_autoencoder", "size": [8, 8], "tied": True, "decoder": "categorical"},
            "one number a voxel, and a categorical decoder needs more",
        ),
        ({"kind": "unet", "dropout": 1}, "less than 1"),
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
