"""How far each network sees, and that tiles with that halo equal the whole image."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from medae.errors import UnfitImage
from medae.networks import NetworkSettings
from tests.networks_small import KINDS, any_size, built, kinds, noise, norms, one_size, small


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


@any_size
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


@any_size
def test_tiles_equal_the_whole_image(settings: NetworkSettings) -> None:
    """Cut along one axis after the other, in 2-D along the other one too; one tile lacks something on both sides."""
    field = settings.receptive_field()
    core = field.stride * (1 + -(-max(field.halo, 3) // field.stride))
    long, short = 2 * core + field.halo + 3, core + 3 if settings.dims == 2 else 5
    for axis in range(settings.dims):
        sizes = [short] * settings.dims
        sizes[axis] = long
        assert_tiles_equal_the_whole(settings, noise(1, 2, *sizes), core)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if small(kind).window is None], ids=lambda kind: kind.__name__)
def test_defaults_are_cheap_to_tile_and_equal_the_whole_picture(kind: type[NetworkSettings]) -> None:
    settings = kind.model_validate({})
    halo = settings.receptive_field().halo
    # 2048 x 2048 in four tiles: each has a core of 1024 and a halo on two of its sides
    assert (1024 + halo) ** 2 < 2.1e6
    assert ((1024 + halo) / 1024) ** 2 < 1.35
    assert_tiles_equal_the_whole(settings, noise(1, 2, 150, 203), core=112)


@kinds
def test_a_norm_that_sees_the_window_cannot_be_tiled(kind: type[NetworkSettings]) -> None:
    fields = {norm: small(kind, norm=norm).receptive_field() for norm in norms(kind)}
    whole = small(kind).window is None
    assert {norm: field.tileable for norm, field in fields.items()} == {
        norm: whole and norm in ("batch", "none") for norm in fields
    }


@one_size
def test_a_network_of_one_size_sees_all_of_it_and_takes_no_other(settings: NetworkSettings) -> None:
    network, size = built(settings), settings.window
    assert size is not None and settings.receptive_field().window == size
    x = noise(1, 2, *size)
    changed = x.clone()
    changed[..., -1] = float("nan")
    with torch.no_grad():
        assert network(changed).isnan().all()
        for other in ((*size[:-1], size[-1] + 4), (size[0] + 4, *size[1:])):
            takes, has = (" x ".join(map(str, each)) for each in (size, other))
            with pytest.raises(UnfitImage, match=f"takes images of {takes}, and this one is {has}"):
                network(noise(1, 2, *other))
