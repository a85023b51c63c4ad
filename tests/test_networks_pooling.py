"""SegNet's pooling: torch's to the bit, at an eighth of what torch keeps."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from medae.networks import SegNetSettings, UNetSettings
from medae.networks.pooling import pool, unpool
from tests.networks_small import noise

TYPES = {"full": torch.float32, "bf16": torch.bfloat16, "double": torch.float64}
POOLS = {2: nn.MaxPool2d(2, return_indices=True), 3: nn.MaxPool3d(2, return_indices=True)}
UNPOOLS = {2: nn.MaxUnpool2d(2), 3: nn.MaxUnpool3d(2)}
sizes = st.one_of(st.tuples(*[st.integers(2, 9)] * 2), st.tuples(*[st.integers(2, 6)] * 3), st.just((3, 601)))


def values(size: tuple[int, ...], kind: str, ties: bool, seed: int, last: bool) -> Tensor:
    """(2, 3, *size); with ties: of few values, and not always numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((2, 3, *size), generator=generator)
    if ties:
        odd = torch.tensor([0.0, -0.0, 1.0, 1.0, float("nan"), float("inf"), -float("inf")])
        x = odd[torch.randint(len(odd), x.shape, generator=generator)]
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim] if last else torch.contiguous_format
    return x.to(TYPES[kind]).to(memory_format=layout)


def same(ours: Tensor, theirs: Tensor) -> bool:
    """To the bit: minus zero is not zero, and one NaN is as good as another."""
    signs = ours.signbit() == theirs.signbit()
    numbers = torch.equal(ours.isnan(), theirs.isnan())
    return numbers and bool((signs & (ours == theirs) | ours.isnan()).all())


@settings(deadline=None)
@given(sizes, st.sampled_from(list(TYPES)), st.booleans(), st.integers(0, 2**20), st.booleans())
def test_values_and_gradients_are_those_of_torch(
    size: tuple[int, ...], kind: str, ties: bool, seed: int, last: bool
) -> None:
    x = values(size, kind, ties, seed, last).requires_grad_()
    maxima, places = pool(x)
    expected, indices = POOLS[len(size)](x)
    assert places.dtype == torch.uint8 and places.shape == maxima.shape
    assert same(maxima, expected)
    placed, as_placed = unpool(2 * maxima, places, size), UNPOOLS[len(size)](2 * expected, indices, output_size=size)
    assert same(placed, as_placed)
    weights = values(size, kind, False, seed + 1, False)
    ours, theirs = (
        torch.autograd.grad((there * weights).sum() + (3 * low).sum(), x)[0]
        for there, low in ((placed, maxima), (as_placed, expected))
    )
    assert same(ours, theirs)


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
def test_gradients_have_gradients(size: tuple[int, ...]) -> None:
    x = torch.randperm(2 * prod(size)).double().view(1, 2, *size).requires_grad_()

    def there_and_back(x: Tensor) -> Tensor:
        maxima, places = pool(x)
        return unpool(maxima.square(), places, size)

    assert torch.autograd.gradcheck(there_and_back, x)
    assert torch.autograd.gradgradcheck(there_and_back, x)


@pytest.mark.parametrize("dims", [2, 3])
def test_segnet_says_what_it_would_with_the_layers_of_torch(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SegNetSettings(features=(4, 6), convolutions=(1, 2), dims=dims).build(1, 2)
    x = noise(2, 1, *(13, 10, 7)[:dims])

    def said() -> list[Tensor]:
        torch.manual_seed(0)
        network.zero_grad()
        y = network(x)
        y.square().sum().backward()
        return [y.detach(), *(parameter.grad.clone() for parameter in network.parameters())]

    ours = said()
    monkeypatch.setattr("medae.networks.segnet.pool", POOLS[dims])
    monkeypatch.setattr("medae.networks.segnet.unpool", UNPOOLS[dims])
    assert all(torch.equal(*pair) for pair in zip(ours, said(), strict=True))


@pytest.mark.parametrize("dims", [2, 3])
def test_segnet_keeps_an_eighth_of_the_bytes_of_the_skips_of_a_unet(dims: int) -> None:
    """At equal widths and sizes, in bfloat16: one byte for each pooled voxel beside two for each voxel before it."""
    from monai.networks.layers.simplelayers import SkipConnection

    x = noise(1, 1, *[16] * dims).bfloat16()
    segnet = SegNetSettings(dims=dims, features=(8, 16, 32), convolutions=(1, 1, 1)).build(1, 2).bfloat16().eval()
    unet = UNetSettings(dims=dims, features=(8, 16, 32, 64), strides=(1, 2, 2)).build(1, 2).bfloat16().eval()
    skips: list[Tensor] = []
    for module in unet.modules():
        if isinstance(module, SkipConnection):
            module.register_forward_pre_hook(lambda _, given: skips.append(given[0]))
    with torch.no_grad():
        unet(x)
        places = segnet.encode(x).context
    assert [tuple(skip.shape[:2]) for skip in skips] == [tuple(place.shape[:2]) for place in places]
    kept, skipped = (sum(tensor.nbytes for tensor in tensors) for tensors in (places, skips))
    assert kept * 8 <= skipped
    assert kept * 2 ** (dims + 1) == skipped


@pytest.mark.parametrize("dims", [2, 3])
def test_training_keeps_no_int64_and_one_byte_a_pooled_voxel(dims: int) -> None:
    x = noise(2, 3, *[8] * dims).requires_grad_()
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        maxima, places = pool(x)
        unpool(maxima, places)
    assert {tensor.dtype for tensor in kept} == {torch.uint8}
    assert len({tensor.data_ptr() for tensor in kept}) == 1 and kept[0].nbytes == maxima.numel()
