"""The laws that every network keeps, in 2-D and in 3-D, and what each one promises beside them."""

import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import medae.networks
from medae.errors import SettingsError
from medae.networks import (
    Autoencoder,
    Code,
    Codes,
    ConvAutoencoderSettings,
    DnCNNSettings,
    Gaussian,
    NetworkConfig,
    NetworkSettings,
    SegNetSettings,
    UNetSettings,
    VAESettings,
    run,
)
from medae.networks.base import crop
from medae.networks.dncnn import pixel_shuffle, pixel_unshuffle
from medae.networks.vae import LOG_VARIANCE
from medae.settings import Settings, validate_settings

KINDS: tuple[type[NetworkSettings], ...] = get_args(get_args(NetworkConfig)[0])
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"features": (4, 8, 8), "strides": (2, 2)},
    "segnet": {"features": (4, 6), "convolutions": (2, 1)},
    "conv_autoencoder": {"features": (4, 6), "bottleneck": 3},
    "dncnn": {"depth": 3, "features": 6},
    "vae": {"features": (4, 6), "latent_channels": 3},
}
OTHERS: list[NetworkSettings] = [
    UNetSettings(features=(4, 6, 8), strides=(1, 2), residual_units=1),
    UNetSettings(features=(4, 8), strides=(2,), residual_units=0, norm="none"),
    UNetSettings(features=(4, 6, 6, 8), strides=(2, 1, 2), residual_units=3),
    SegNetSettings(features=(4, 6, 6), convolutions=(1, 1, 2), norm="none"),
    ConvAutoencoderSettings(features=(4,), convolutions=3, bottleneck=5, enlarge="transposed"),
    ConvAutoencoderSettings(features=(4, 5, 6), bottleneck=2, enlarge="transposed", norm="none"),
    DnCNNSettings(depth=2, features=5, pixel_unshuffle=1),
    DnCNNSettings(depth=5, features=4, pixel_unshuffle=2, norm="none"),
    VAESettings(features=(4, 5, 6), latent_channels=2, norm="none"),
]


def small(kind: type[NetworkSettings], **more: Any) -> NetworkSettings:
    return kind(**SMALL[kind.model_fields["kind"].default] | more)


def name(settings: NetworkSettings) -> str:
    return f"{settings.kind}-{settings.dims}d-{settings.norm}"


def both(settings: list[NetworkSettings]) -> list[NetworkSettings]:
    return [type(s)(**s.model_dump() | {"dims": dims}) for s in settings for dims in (2, 3)]


EACH = both([small(kind) for kind in KINDS])
EACH_NORM = both([small(kind, norm=norm) for kind in KINDS for norm in ("batch", "instance", "group", "none")])
VARIED = EACH + both(OTHERS)
AUTOENCODING = [settings for settings in VARIED if settings.autoencodes]
each = pytest.mark.parametrize("settings", EACH, ids=name)
each_norm = pytest.mark.parametrize("settings", EACH_NORM, ids=name)
varied = pytest.mark.parametrize("settings", VARIED, ids=name)


def built(settings: NetworkSettings, channels: int = 2, seed: int = 0) -> nn.Module:
    """At evaluation, with random weights and random running statistics: what training would leave."""
    torch.manual_seed(seed)
    network = settings.build(channels, channels).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                assert module.running_mean is not None and module.running_var is not None
                for values in (module.running_mean, module.bias):
                    values.normal_(0, 0.3)
                for values in (module.running_var, module.weight):
                    values.uniform_(0.5, 1.5)
    return network


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ---- size, gradient, learning, sameness


SIZES: dict[int, list[tuple[int, ...]]] = {
    2: [(1, 1), (1, 7), (3, 2), (23, 17), (64, 5)],
    3: [(1, 1, 1), (3, 1, 9), (5, 11, 6), (2, 17, 3)],
}


@each_norm
def test_output_has_the_size_of_the_input(settings: NetworkSettings) -> None:
    network = built(settings)
    for size in SIZES[settings.dims]:
        for batch in (1, 2):
            with torch.no_grad():
                y = network(noise(batch, 2, *size))
            assert y.shape == (batch, 2, *size)
            assert torch.isfinite(y).all()


@pytest.mark.parametrize("settings", [s for s in EACH if s.kind != "dncnn"], ids=name)
def test_outputs_may_be_more_or_fewer_than_inputs(settings: NetworkSettings) -> None:
    for channels_in, channels_out in ((1, 4), (3, 1)):
        network = settings.build(channels_in, channels_out)
        assert network(noise(2, channels_in, *[9] * settings.dims)).shape[1] == channels_out


@each_norm
def test_gradient_reaches_every_parameter(settings: NetworkSettings) -> None:
    torch.manual_seed(3)
    network = settings.build(2, 2)
    x = noise(2, 2, *[13, 11, 9][: settings.dims])
    (network(x) - noise(*x.shape, seed=2)).square().mean().backward()
    for parameter, values in network.named_parameters():
        assert values.isfinite().all()
        assert values.grad is not None and values.grad.isfinite().all(), parameter
        # MONAI keeps a bias in front of a norm, which subtracts it again
        without_effect = settings.kind == "unet" and settings.norm != "none" and parameter.endswith("conv.bias")
        assert without_effect or values.grad.abs().max() > 0, parameter


@each
def test_one_batch_is_learned(settings: NetworkSettings) -> None:
    torch.manual_seed(4)
    network = settings.build(1, 1)
    grid = torch.linspace(0, 3, 16 if settings.dims == 2 else 8)
    waves = torch.stack(torch.meshgrid(*[grid] * settings.dims, indexing="ij")).sum(0)
    target = torch.stack([waves.sin(), waves.cos()])[:, None]
    x = target + 0.3 * torch.randn(target.shape)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(80):
        loss = (network(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.25 * losses[0]


@each_norm
def test_evaluation_repeats_itself_and_does_not_touch_its_input(settings: NetworkSettings) -> None:
    network = built(settings)
    x = noise(3, 2, *[10, 7, 9][: settings.dims])
    before = x.clone()
    with torch.no_grad():
        first, second = network(x), network(x)
    assert torch.equal(first, second)
    assert torch.equal(x, before)


@each_norm
def test_items_of_a_batch_do_not_see_each_other(settings: NetworkSettings) -> None:
    network = built(settings)
    x = noise(3, 2, *[10, 7, 9][: settings.dims])
    with torch.no_grad():
        together = network(x)
        apart = torch.cat([network(item[None]) for item in x])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@each_norm
def test_saved_weights_say_the_same(settings: NetworkSettings) -> None:
    network, other = built(settings), built(settings, seed=9)
    x = noise(1, 2, *[9, 12, 5][: settings.dims])
    with torch.no_grad():
        assert not torch.equal(network(x), other(x))
        other.load_state_dict(network.state_dict())
        assert torch.equal(network(x), other(x))


@each
def test_memory_format_changes_nothing(settings: NetworkSettings) -> None:
    layout = torch.channels_last if settings.dims == 2 else torch.channels_last_3d
    network = built(settings)
    x = noise(2, 2, *[9, 12, 6][: settings.dims])
    with torch.no_grad():
        expected = network(x)
        actual = network.to(memory_format=layout)(x.to(memory_format=layout))  # type: ignore[call-overload]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---- the receptive field


def reach(network: nn.Module, settings: NetworkSettings, axis: int, value: float) -> int:
    """How far along one axis a layer of voxels set to `value` changes the output, over all places within a stride."""
    field = settings.receptive_field()
    sizes = [2 * field.stride] * settings.dims
    sizes[axis] = 2 * field.halo + 3 * field.stride
    x = noise(1, 2, *sizes).expand(field.stride, -1, *sizes).clone()
    changed = x.clone()
    places = range(field.halo + field.stride, field.halo + 2 * field.stride)
    for item, place in enumerate(places):
        changed[item].movedim(1 + axis, 0)[place] = value
    with torch.no_grad():
        differs = (network(x) != network(changed)).movedim(2 + axis, 1).flatten(2).any(2)
    changes = ((place, differs[item].nonzero().flatten().tolist()) for item, place in enumerate(places))
    return max((abs(place - p) for place, seen in changes for p in seen), default=0)


@varied
def test_nothing_beyond_the_radius_is_seen_and_the_radius_is(settings: NetworkSettings) -> None:
    network = built(settings)
    radius = settings.receptive_field().radius
    for axis in range(settings.dims):
        assert reach(network, settings, axis, 30.0) <= radius
        # a NaN passes through every weight and every maximum: what is connected at all shows
        assert reach(network, settings, axis, float("nan")) == radius


def tiles(sizes: tuple[int, ...], core: int, halo: int) -> Iterator[tuple[tuple[slice, ...], ...]]:
    """Where to read in the image, what to keep of the tile, where to write."""
    for starts in product(*(range(0, size, core) for size in sizes)):
        ends = [min(start + core, size) for start, size in zip(starts, sizes, strict=True)]
        low = [max(start - halo, 0) for start in starts]
        high = [min(end + halo, size) for end, size in zip(ends, sizes, strict=True)]
        read = tuple(slice(*pair) for pair in zip(low, high, strict=True))
        keep = tuple(slice(s - first, e - first) for s, e, first in zip(starts, ends, low, strict=True))
        yield read, keep, tuple(slice(*pair) for pair in zip(starts, ends, strict=True))


def stitched(network: nn.Module, x: Tensor, core: int, halo: int) -> Tensor:
    y = torch.full_like(x, float("nan"))
    every = (slice(None), slice(None))
    for read, keep, write in tiles(tuple(x.shape[2:]), core, halo):
        y[(*every, *write)] = network(x[(*every, *read)])[(*every, *keep)]
    return y


def assert_tiles_equal_the_whole(settings: NetworkSettings, x: Tensor, core: int) -> None:
    network = built(settings)
    with torch.no_grad():
        whole = network(x)
        parts = stitched(network, x, core, settings.receptive_field().halo)
    assert (whole - parts).abs().max() < 1e-5 * (whole.max() - whole.min())


@varied
def test_tiles_equal_the_whole_image(settings: NetworkSettings) -> None:
    field = settings.receptive_field()
    core = max(field.stride, 8 if settings.dims == 2 else 4)
    long, short = 2 * field.halo + 3 * core + 1, core + 3
    for axis in range(settings.dims):
        sizes = [short] * settings.dims
        sizes[axis] = long
        assert_tiles_equal_the_whole(settings, noise(1, 2, *sizes), core)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_defaults_are_cheap_to_tile_and_equal_the_whole_picture(kind: type[NetworkSettings]) -> None:
    settings = kind.model_validate({})
    halo = settings.receptive_field().halo
    # 2048 x 2048 in four tiles: each has a core of 1024 and a halo on two of its sides
    assert (1024 + halo) ** 2 < 2.1e6
    assert ((1024 + halo) / 1024) ** 2 < 1.35
    assert_tiles_equal_the_whole(settings, noise(1, 2, 150, 203), core=112)


def test_a_norm_that_sees_the_window_cannot_be_tiled() -> None:
    for kind in KINDS:
        fields = {norm: small(kind, norm=norm).receptive_field() for norm in ("batch", "none", "instance", "group")}
        assert [field.tileable for field in fields.values()] == [True, True, False, False]


# ---- the latent


@pytest.mark.parametrize("settings", AUTOENCODING, ids=name)
def test_encoding_then_decoding_is_what_the_network_does(settings: NetworkSettings) -> None:
    network = built(settings)
    assert isinstance(network, Autoencoder)
    x = noise(2, 2, *[21, 13, 9][: settings.dims])
    stride = settings.receptive_field().stride
    with torch.no_grad():
        latent = network.encode(x)
        decoded = network.decode(latent)
        prediction, same = run(network, x)
    code = latent.point()
    assert decoded.shape[2:] == tuple(stride * n for n in code.z.shape[2:])
    assert torch.equal(crop(decoded, x), network(x).detach())
    assert torch.equal(prediction, network(x).detach())
    assert same is not None and torch.equal(same.point().z, code.z)


@pytest.mark.parametrize("settings", [s for s in EACH if not s.autoencodes], ids=name)
def test_the_others_have_no_latent(settings: NetworkSettings) -> None:
    network = built(settings)
    x = noise(1, 2, *[8] * settings.dims)
    prediction, latent = run(network, x)
    assert latent is None
    assert torch.equal(prediction, network(x))


def test_a_vae_draws_in_training_and_answers_by_its_mean() -> None:
    network = VAESettings(**SMALL["vae"]).build(1, 1).train()
    x = noise(2, 1, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    latent = network.encode(x)
    assert isinstance(latent, Gaussian)
    assert torch.equal(network(x), network.decode(Code(latent.mean)))


def test_a_gaussian_draws_what_it_says_and_lets_gradients_through() -> None:
    torch.manual_seed(5)
    mean, log_variance = torch.tensor(3.0), torch.tensor(0.5)
    mean, log_variance = (value.expand(200_000).clone().requires_grad_() for value in (mean, log_variance))
    latent = Gaussian(mean, log_variance)
    drawn = latent.draw().z
    assert abs(drawn.mean().item() - 3.0) < 0.02
    assert abs(drawn.var().item() / torch.tensor(0.5).exp().item() - 1) < 0.02
    for gradient in torch.autograd.grad(drawn.square().sum(), [mean, log_variance]):
        assert gradient.abs().max() > 0
    assert latent.point().z is mean


def test_codes_and_a_code_are_their_own_draw() -> None:
    codes = Codes(torch.zeros(1, 2, 2, dtype=torch.int64), noise(1, 3, 2, 2))
    assert codes.draw().z is codes.vectors and codes.point().z is codes.vectors
    code = Code(noise(1, 3, 2, 2))
    assert code.draw() is code and code.point() is code


def test_log_variances_stay_within_sense() -> None:
    network = VAESettings(**SMALL["vae"]).build(1, 1)
    network.log_variance.bias = nn.Parameter(torch.tensor([1e9, -1e9, 0.0]))
    latent = network.encode(noise(1, 1, 8, 8))
    assert isinstance(latent, Gaussian)
    low, high = LOG_VARIANCE
    assert latent.log_variance[:, 0].eq(high).all()
    assert latent.log_variance[:, 1].eq(low).all()
    assert latent.draw().z.isfinite().all()


# ---- each one


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
    assert files - {"base", "blocks", "latent", "reach"} == kinds


@varied
def test_settings_survive_as_plain_data(settings: NetworkSettings) -> None:
    assert Holder.model_validate({"network": settings.model_dump(mode="json")}).network == settings


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
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
