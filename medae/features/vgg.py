"""VGG16 (Simonyan 2015, https://arxiv.org/abs/1409.1556) as far as its features go; the weights are a file of the
user's.

Any file in torchvision's format does: `vgg16-397923af.pth`, or the same tensors as safetensors. Only
`features.N.weight` and `features.N.bias` are read, and nothing in the file is executed.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from medae.errors import SettingsError
from medae.features.distance import Features

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""Of the convolutions of each block; a pooling lies between blocks. The fifth block is not used."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, in 0..1: what the weights were trained on."""


class VGG16Features(Features):
    """relu1_2, relu2_2, relu3_3 and relu4_3 of images in 0..1: the layers of Johnson 2016.

    https://arxiv.org/abs/1603.08155. Grey is shown as grey RGB; with any other number of channels each is seen by
    itself. A layer too coarse for the image (less than a pixel) is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_convolutions())
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Raises SettingsError where the file is not there, or is not one of VGG16."""
        network, state = cls(), _read(path)
        needed = network.state_dict()
        wrong = [name for name, value in needed.items() if name not in state or tuple(state[name].shape) != value.shape]
        if wrong:
            raise SettingsError(
                f"the perceptual weights are not those of a VGG16 as torchvision stores them: {wrong[0]} is missing or "
                "of another shape. Give the file of torchvision's vgg16, as .pth or .safetensors."
            )
        network.load_state_dict({name: state[name] for name in needed})
        return network

    def layers(self, x: Tensor) -> Iterator[Tensor]:
        batch, channels = x.shape[:2]
        if channels != 3:
            x = x.reshape(batch * channels, 1, *x.shape[2:]).expand(-1, 3, -1, -1)
        seen = (x - self.get_buffer("mean")) / self.get_buffer("deviation")
        for start, end in _blocks():
            if min(seen.shape[2:]) < 2 and start > 0:
                return
            seen = self.features[start:end](seen)
            yield seen.reshape(batch, -1, *seen.shape[2:])


def describe_weights(path: Path) -> str:
    """The weights by their digest: names of files say nothing."""
    return f"weights sha256 {_sha256(path, path.stat().st_mtime_ns)[:16]}" if path.is_file() else "weights not here"


@lru_cache(maxsize=4)
def _sha256(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise SettingsError(
            f"the perceptual weights are not at {path}. Give the file of torchvision's vgg16, or leave `weights` out "
            "for the fixed filters."
        )
    try:
        state: Any
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and safetensors each have their own
        raise SettingsError(f"the perceptual weights cannot be read ({type(error).__name__})") from None
    return {name: value for name, value in dict(state).items() if isinstance(value, Tensor)}


def _convolutions() -> Iterator[nn.Module]:
    """In torchvision's order, so that its names fit."""
    before = 3
    for block, widths in enumerate(WIDTHS):
        if block:
            yield nn.MaxPool2d(2)
        for width in widths:
            yield nn.Conv2d(before, width, 3, padding=1)
            yield nn.ReLU()
            before = width


def _blocks() -> Iterator[tuple[int, int]]:
    """Where each block's modules begin and end, its pooling first."""
    start = 0
    for block, widths in enumerate(WIDTHS):
        end = start + 2 * len(widths) + (block > 0)
        yield start, end
        start = end
