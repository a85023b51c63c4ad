"""What one writes without medae: Pillow, torch and MONAI's network, one picture at a time, on one thread."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image as Picture

from medae.backends.torch import network_of
from medae.package import ModelPackage


def network(package: ModelPackage) -> torch.nn.Module:
    """The package's network as it was trained. From here on, torch has one thread in this process."""
    torch.set_num_threads(1)
    return network_of(package).eval()


def decoded(data: bytes) -> torch.Tensor:
    picture = np.array(Picture.open(BytesIO(data)).convert("RGB"))
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def forward(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The label of each pixel."""
    with torch.inference_mode():
        return model(x).argmax(1)[0].byte()


def answer(model: torch.nn.Module, data: bytes) -> bytes:
    """A picture in, a PNG of labels out."""
    target = BytesIO()
    Picture.fromarray(forward(model, decoded(data)).numpy()).save(target, "PNG")
    return target.getvalue()
