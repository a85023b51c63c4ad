"""The laws that every network keeps, in 2-D and in 3-D: size, gradient, learning, sameness."""

import pytest
import torch
from torch import nn

from medae.networks import NetworkSettings
from tests.networks_small import EACH, built, each, each_norm, name, noise, sized, varied

SIZES: dict[int, list[tuple[int, ...]]] = {
    2: [(1, 1), (1, 7), (3, 2), (23, 17), (64, 5)],
    3: [(1, 1, 1), (3, 1, 9), (5, 11, 6), (2, 17, 3)],
}


@each_norm
def test_output_has_the_size_of_the_input(settings: NetworkSettings) -> None:
    network = built(settings)
    for size in SIZES[settings.dims] if settings.window is None else [settings.window]:
        for batch in (1, 2):
            with torch.no_grad():
                y = network(noise(batch, 2, *size))
            assert y.shape == (batch, 2, *size)
            assert torch.isfinite(y).all()


@pytest.mark.parametrize("settings", [s for s in EACH if s.kind != "dncnn"], ids=name)
def test_outputs_may_be_more_or_fewer_than_inputs(settings: NetworkSettings) -> None:
    for channels_in, channels_out in ((1, 4), (3, 1)):
        network = settings.build(channels_in, channels_out)
        assert network(noise(2, channels_in, *sized(settings, 9, 9, 9))).shape[1] == channels_out


@varied
def test_gradient_reaches_every_parameter(settings: NetworkSettings) -> None:
    torch.manual_seed(3)
    network = settings.build(2, 2)
    for module in network.modules():  # what is dropped this time has no gradient
        if isinstance(module, nn.Dropout):
            module.eval()
    x = noise(2, 2, *sized(settings, 13, 11, 9))
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
    size = sized(settings, 16, 16) if settings.dims == 2 else sized(settings, 8, 8, 8)
    grids = [torch.linspace(0, 3, length) for length in size]
    waves = torch.stack(torch.meshgrid(*grids, indexing="ij")).sum(0)
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
    x = noise(3, 2, *sized(settings, 10, 7, 9))
    before = x.clone()
    with torch.no_grad():
        first, second = network(x), network(x)
    assert torch.equal(first, second)
    assert torch.equal(x, before)


@each_norm
def test_items_of_a_batch_do_not_see_each_other(settings: NetworkSettings) -> None:
    network = built(settings)
    x = noise(3, 2, *sized(settings, 10, 7, 9))
    with torch.no_grad():
        together = network(x)
        apart = torch.cat([network(item[None]) for item in x])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@each_norm
def test_saved_weights_say_the_same(settings: NetworkSettings) -> None:
    network, other = built(settings), built(settings, seed=9)
    x = noise(1, 2, *sized(settings, 9, 12, 5))
    with torch.no_grad():
        assert not torch.equal(network(x), other(x))
        other.load_state_dict(network.state_dict())
        assert torch.equal(network(x), other(x))


@each
def test_memory_format_changes_nothing(settings: NetworkSettings) -> None:
    layout = torch.channels_last if settings.dims == 2 else torch.channels_last_3d
    network = built(settings)
    x = noise(2, 2, *sized(settings, 9, 12, 6))
    with torch.no_grad():
        expected = network(x)
        actual = network.to(memory_format=layout)(x.to(memory_format=layout))  # type: ignore[call-overload]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
