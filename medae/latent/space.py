"""A package's latent space: whole images into it, and out of it again.

Shape suffixes: B slices (2-D networks) or 1, C channels, S R W slices, rows, columns.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

import medae
from medae.backends.torch import choose_device, network_of
from medae.errors import LimitExceeded, UsageError
from medae.image import Image
from medae.networks import Autoencoder, Code, Latent, NetworkConfig, NetworkSettings
from medae.package import ModelPackage
from medae.predictor import prepare
from medae.preparation import Prepared
from medae.tiles import TILE_VOXELS, Tile, TilePlan, plan_tiles, read_tile


class LatentSpace:
    """The autoencoder of a package, ready to encode and to decode.

    Raises UsageError for a package whose network has no latent.
    """

    def __init__(self, package: ModelPackage, device: str = "auto") -> None:
        network = network_of(package)
        if not isinstance(network, Autoencoder):
            kind = package.card.network.get("kind", "this network")
            raise UsageError(
                f"{kind} does not go through a latent code, so there is none to look at; take an autoencoder"
            )
        self.package, self.card = package, package.card
        self.device = choose_device(device)
        self.network = network.to(self.device).eval()
        self.field = self.settings.receptive_field()
        """Of the network alone: that of the card also says what its scores look at."""

    @property
    def settings(self) -> NetworkSettings:
        """Of the network."""
        settings: NetworkSettings = TypeAdapter[Any](NetworkConfig).validate_python(self.card.network)
        return settings

    @property
    def patch(self) -> tuple[int, ...]:
        """The size that the network was trained on: (rows, columns) or (slices, rows, columns)."""
        told = self.card.experiment.get("training", {}).get("patch")
        size = self.card.receptive_field.window or told
        if size is None:
            raise UsageError("this package does not say the size of its training images; give one")
        return tuple(size)

    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """(Z, *places) of an image of this size."""
        with torch.inference_mode():
            latent = self.network.encode(torch.zeros(1, self.card.channels_in, *size, device=self.device))
        return tuple(latent.point().z.shape[1:])

    @property
    def dims(self) -> int:
        return self.field.dims

    def encode(self, image: Image) -> Latent:
        """The latent of a whole image: (B, Z, *places); of a large one, tile by tile, which changes nothing.

        Raises UnfitImage for an image that the model cannot take, LimitExceeded for one that would have to be seen
        whole and is too large for that.
        """
        return self.encode_prepared(prepare(self.card, image))

    def embed(self, image: Image) -> NDArray[np.float32]:
        """(Z,): the mean over all slices and places of the image's point in the latent. Raises as `encode`."""
        return pooled(self.encode(image))

    @property
    def provenance(self) -> dict[str, Any]:
        """Who encodes."""
        card = self.card
        return {
            "package": {"name": card.name, "version": card.version, "digest": self.package.digest},
            "medae": medae.__version__,
            "device": str(self.device),
        }

    def encode_prepared(self, prepared: Prepared) -> Latent:
        """What `encode` does, of an image that is prepared already."""
        pixels_CSRW = prepared.image.pixels
        plan = plan_tiles(prepared.image.geometry.shape, self.field)
        if plan.blend:
            raise LimitExceeded(
                f"the norm of this network sees the whole image, and this one has more than {TILE_VOXELS[self.dims]} "
                "voxels; send a smaller one"
            )
        whole: dict[str, Any] = {}
        kind: type[Latent] = Code
        for tile in plan.tiles:
            window = np.require(read_tile(pixels_CSRW, tile.window), np.float32, ["C", "W"])
            x = torch.from_numpy(window).to(self.device)
            with torch.inference_mode():
                latent = self.network.encode(x.movedim(1, 0) if self.dims == 2 else x[None])
            kind = type(latent)
            self._write(whole, latent, tile, plan)
        return kind(**whole)

    def decode(self, latent: Latent) -> NDArray[np.float32]:
        """(B, C', *spatial), in the prepared range, at the stride times the size of the latent."""
        with torch.inference_mode():
            moved = type(latent)(**{name: value.to(self.device) for name, value in _tensors(latent).items()})
            decoded: NDArray[np.float32] = self.network.decode(moved).float().cpu().numpy()
        return decoded

    def _write(self, whole: dict[str, Any], latent: Latent, tile: Tile, plan: TilePlan) -> None:
        """A tile's core into the whole; a flat latent, which has no places, is all there is."""
        stride, seen = self.field.stride, 3 - self.dims
        flat = self.field.window is not None
        for name, value in _tensors(latent).items():
            value = value.cpu()
            if name not in whole:
                places = value.shape[-self.dims :] if flat else [length // stride for length in plan.padded[seen:]]
                lead = [plan.padded[0] if self.dims == 2 else 1, *value.shape[1 : value.ndim - self.dims]]
                whole[name] = value.new_zeros(*lead, *places)
            batch = tile.core[0] if self.dims == 2 else slice(None)
            core, inner = ([_reduced(side, stride, flat) for side in box[seen:]] for box in (tile.core, tile.inner))
            whole[name][(batch, ..., *core)] = value[(..., *inner)]


def pooled(latent: Latent) -> NDArray[np.float32]:
    """(Z,): the mean over slices and places of the latent's point."""
    mean: NDArray[np.float32] = latent.point().z.float().movedim(1, 0).flatten(1).mean(1).numpy()
    return mean


def _reduced(side: slice, stride: int, flat: bool) -> slice:
    return slice(None) if flat else slice(side.start // stride, side.stop // stride)


def _tensors(latent: Latent) -> dict[str, Any]:
    """The latent's tensors by name; what a decoder needs beside them (SegNet's places) is left behind."""
    values = {field.name: getattr(latent, field.name) for field in fields(latent)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
