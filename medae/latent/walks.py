"""Walks through a latent space: between two images, along its dimensions, through one posterior, from the prior.

Each gives a sheet of pictures. Numbers are drawn on the CPU by a generator of their own, so a seed gives the same
picture on every device.
"""

from collections.abc import Sequence
from math import ceil, inf, prod, sqrt
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medae.backends.torch import prior_of
from medae.errors import LimitExceeded, UnfitImage, UsageError
from medae.image import Image
from medae.io.answer import AnswerFile
from medae.latent.sheet import Row, sheet
from medae.latent.space import LatentSpace
from medae.networks import Code, Codes, Gaussian, Latent
from medae.networks.vqvae import VQVAE
from medae.pictures import RGB, display_range, to_rgb
from medae.predictor import prepare
from medae.preparation import Prepared
from medae.tiles import TILE_VOXELS

Method = Literal["linear", "spherical"]


def interpolate(
    space: LatentSpace, first: Image, second: Image, *, steps: int = 7, method: Method = "linear"
) -> AnswerFile:
    """From one image to another of the same size, both reconstructed at the ends.

    spherical: along the great circle, which keeps the length that a normal latent expects (White 2016,
    https://arxiv.org/abs/1609.04468). A point between codes of a book becomes the nearest ones. Raises UnfitImage for
    two sizes, UsageError for a network that cannot decode a latent alone.
    """
    _require_pictures(space)
    ends = [prepare(space.card, image) for image in (first, second)]
    sizes = [prepared.image.geometry.shape for prepared in ends]
    if sizes[0] != sizes[1]:
        has = " and ".join(" x ".join(map(str, size)) for size in sizes)
        raise UnfitImage(f"the two images are {has} on the model's grid; give two of one size")
    start, stop = (_movable(space.encode_prepared(prepared)) for prepared in ends)
    parts = np.linspace(0, 1, steps).tolist()
    between = [_between(start, stop, part, method) for part in parts]
    row = [_picture(space, z, ends[0]) for z in between]
    originals = [_middle(prepared.image.pixels, prepared) for prepared in ends]
    rows = [
        Row("", [originals[0], *row, originals[1]], ["first image", *(f"{part:.0%}" for part in parts), "second image"])
    ]
    return sheet("interpolation.png", f"{space.card.name}: from one latent to the other, {method}", rows)


def traverse(
    space: LatentSpace, image: Image, *, dimensions: Sequence[int] = (), count: int = 8, span: float = 3, steps: int = 7
) -> AnswerFile:
    """One image with one latent dimension moved at a time, everywhere in the image alike.

    Steps are standard deviations of the prior (a normal latent) or of the dimension within this image (a code).
    dimensions: none: the `count` that say most about this image: of the largest divergence from the prior, or variance.
    Raises UsageError for codes of a book, which have no directions, for a dimension that is not there, and for a span
    that is no number above 0.
    """
    _require_pictures(space)
    if not 0 < span < inf:
        raise UsageError(f"the span is a number of standard deviations above 0, got {span:g}")
    prepared = prepare(space.card, image)
    latent = space.encode_prepared(prepared)
    if isinstance(latent, Codes):
        raise UsageError("the codes of a book have no directions to move along; use interpolate, sample or units")
    z, (unit, matter) = _movable(latent), _scale(latent)
    chosen = list(dimensions) or matter.argsort(descending=True)[:count].tolist()
    if not all(0 <= number < z.shape[1] for number in chosen):
        raise UsageError(f"this latent has the dimensions 0 to {z.shape[1] - 1}; got {', '.join(map(str, chosen))}")
    offsets = np.linspace(-span, span, steps).tolist()
    rows = []
    for place, number in enumerate(chosen):
        moved = [z.clone() for _ in offsets]
        for one, offset in zip(moved, offsets, strict=True):
            one[:, number] += offset * unit[number]
        captions = [f"{offset:+.1f} sd" for offset in offsets] if place == 0 else []
        rows.append(Row(f"dimension {number}", [_picture(space, one, prepared) for one in moved], captions))
    whose = "the prior" if isinstance(latent, Gaussian) else "the dimension in this image"
    return sheet(
        "traversal.png", f"{space.card.name}: one dimension at a time, in standard deviations of {whose}", rows
    )


def decodings(space: LatentSpace, image: Image, *, count: int = 6, seed: int = 0) -> AnswerFile:
    """What the posterior of one image allows: its mean and draws from it, decoded, and where these differ.

    Raises UsageError for a latent that leaves nothing to chance.
    """
    _require_pictures(space)
    prepared = prepare(space.card, image)
    latent = space.encode_prepared(prepared)
    if not isinstance(latent, Gaussian):
        raise UsageError("this network's latent is one point, so it has one decoding; several take a vae")
    draws = torch.Generator().manual_seed(seed)
    spread = torch.exp(0.5 * latent.log_variance)
    points = [latent.mean + spread * torch.randn(latent.mean.shape, generator=draws) for _ in range(count)]
    values = [_decoded(space, Code(z), prepared) for z in (latent.mean, *points)]
    differs = np.std([value.mean(0) for value in values[1:]], axis=0)
    top = float(differs.max()) or 1.0
    pictures = [_middle(prepared.image.pixels, prepared), *(_shown(value, prepared) for value in values)]
    captions = ["image", "mean", *(f"draw {number}" for number in range(1, count + 1)), f"spread 0..{top:.2g}"]
    rows = [Row("", [*pictures, to_rgb(differs[None], 0, top)], captions)]
    return sheet("decodings.png", f"{space.card.name}: decodings of one posterior, seed {seed}", rows)


def sample(
    space: LatentSpace,
    *,
    count: int = 16,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    temperature: float = 1.0,
) -> AnswerFile:
    """Images that nobody took: a normal latent's prior decoded, or codes that a prior has drawn.

    size: (rows, columns) or (slices, rows, columns) of a VAE's samples; None: those of a training patch. A VAE with
    places draws each place by itself, and so gives texture without a plan. temperature: below 1, likelier samples.
    Raises UsageError for a latent without a distribution, for codes without a prior or with a size, which is their
    prior's, and for a temperature that is no number above 0; LimitExceeded for samples larger than a tile.
    """
    _require_pictures(space)
    if not 0 < temperature < inf:
        raise UsageError(f"the temperature is a number above 0, got {temperature:g}")
    draws = torch.Generator().manual_seed(seed)
    kind = space.settings.latent
    if kind == "code":
        raise UsageError("a plain code has no distribution to draw from; take a vae, or a vqvae with a prior")
    if isinstance(space.network, VQVAE):
        prior = prior_of(space.package).to(space.device)
        if size is not None:
            grid = " x ".join(map(str, prior.grid))
            raise UsageError(f"samples of a vqvae are as large as its prior's grid, {grid} codes: leave the size out")
        latent: Latent = space.network.codes(prior.sample(count, draws, temperature))
        how = "codes drawn by the prior"
    else:
        size = size or space.patch
        if prod(size) > TILE_VOXELS[space.dims]:
            told = " x ".join(map(str, size))
            raise LimitExceeded(f"a sample of {told} is larger than {TILE_VOXELS[space.dims]} voxels; ask for less")
        shape = space.latent_shape(size)
        latent = Code(temperature * torch.randn(count, *shape, generator=draws))
        how = "drawn from the standard normal prior"
    decoded = space.decode(latent)
    flat = decoded if space.dims == 2 else decoded[:, :, decoded.shape[2] // 2]
    pictures = [to_rgb(one, 0, 1) for one in flat]
    wide = ceil(sqrt(count))
    rows = [Row("", pictures[at : at + wide]) for at in range(0, count, wide)]
    return sheet("samples.png", f"{space.card.name}: {how}, seed {seed}", rows)


def _require_pictures(space: LatentSpace) -> None:
    if space.card.task.kind == "segmentation":
        raise UsageError("this model decodes to labels, not to images; take one that restores or scores")
    if space.card.network.get("kind") == "segnet":
        raise UsageError("segnet's decoder needs to know where each maximum was, not the latent alone; take another")


def _movable(latent: Latent) -> Tensor:
    """The point to move: of codes, what was rounded to them where that is known."""
    if isinstance(latent, Codes) and latent.encoded is not None:
        return latent.encoded
    return latent.point().z


def _between(first: Tensor, second: Tensor, part: float, method: Method) -> Tensor:
    if method == "linear":
        return torch.lerp(first, second, part)
    one, other = first.flatten().double(), second.flatten().double()
    lengths = one.norm(), other.norm()
    angle = torch.acos((one @ other / (lengths[0] * lengths[1])).clamp(-1, 1))
    if not angle.isfinite() or angle.sin() < 1e-6:  # the same direction, or the opposite: no circle is the great one
        return torch.lerp(first, second, part)
    on_sphere = (
        torch.sin((1 - part) * angle) * one / lengths[0] + torch.sin(part * angle) * other / lengths[1]
    ) / angle.sin()
    found: Tensor = on_sphere * torch.lerp(*lengths, part)
    return found.to(first.dtype).reshape(first.shape)


def _scale(latent: Latent) -> tuple[Tensor, Tensor]:
    """(what a step along each dimension is, how much each says about the image)."""
    if isinstance(latent, Gaussian):
        nats = 0.5 * (latent.mean.square() + latent.log_variance.exp() - 1 - latent.log_variance)
        return torch.ones(latent.mean.shape[1]), nats.movedim(1, 0).flatten(1).mean(1)
    places = latent.point().z.movedim(1, 0).flatten(1)
    spread = places.std(1) if places.shape[1] > 1 else places.std().expand(len(places))
    return spread, spread if places.shape[1] > 1 else places[:, 0].abs()


def _picture(space: LatentSpace, z: Tensor, prepared: Prepared) -> RGB:
    latent: Latent = Code(z)
    if isinstance(space.network, VQVAE):
        with torch.inference_mode():
            latent = space.network.quantise(Code(z.to(space.device)))
    return _shown(_decoded(space, latent, prepared), prepared)


def _decoded(space: LatentSpace, latent: Latent, prepared: Prepared) -> NDArray[np.float32]:
    """(C, R, W): the middle slice, cut to the image's size."""
    decoded = space.decode(latent)
    slices, rows, columns = prepared.image.geometry.shape
    middle: NDArray[np.float32] = decoded[slices // 2] if space.dims == 2 else decoded[0][:, slices // 2]
    return middle[:, :rows, :columns]


def _shown(values: NDArray[np.float32], prepared: Prepared) -> RGB:
    return to_rgb(values, *_range(prepared))


def _middle(pixels: NDArray[np.float32], prepared: Prepared) -> RGB:
    return _shown(pixels[:, pixels.shape[1] // 2], prepared)


def _range(prepared: Prepared) -> tuple[float, float]:
    """Shown black and white: 0..1, the prepared range, unless the image leaves it (z-scores)."""
    low, high = display_range(prepared.image)
    return (0.0, 1.0) if low >= -0.5 and high <= 1.5 else (low, high)
