"""What does the perceptual objective buy? The same autoencoder, trained for mse alone and with it, side by side.

On held-out tissue: PSNR and SSIM, which reward the average of all that is likely; the feature distance, which the
second network was trained for; and sharpness, which neither was: the energy of the Laplacian, as a part of the truth's
(a blurred reconstruction has less than 1). Mean over training seeds.

    python -m benchmarks.perceptual [--kather FOLDER] [--weights VGG16.pth] [--picture FILE.png]

Without --kather: the stained tissue that comes with scikit-image, its left part for training. With it: Kather's
colorectal tiles (doi:10.5281/zenodo.53169; a folder with tiles.zip and index.csv), slides 1 to 7 for training, the
others held out.
"""

import argparse
import csv
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from benchmarks.models import table
from medae.backends.torch import choose_device
from medae.data.samples import Sample
from medae.features import describe, feature_distance
from medae.metrics.fidelity import psnr, ssim
from medae.networks import Autoencoder, ConvAutoencoderSettings
from medae.objectives import MSE, Loss, ObjectiveSettings, Perceptual

PATCH, BATCH, RATE = 48, 4, 1e-3
SLIDE = re.compile(r"CRC-Prim-HE-(\d\d)")
HELD_OUT = ("08", "09", "10")
"""Slides of Kather's; the others train. Tiles that do not name theirs are left out."""
EMPTY = "08_EMPTY"
Picture = NDArray[np.float32]
"""(3, rows, columns) in 0..1, a multiple of 8 along each side."""


def tissue() -> tuple[list[Picture], list[Picture]]:
    """(train, test) of what comes with the dependencies."""
    parts = []
    for split in ("train", "test"):
        (case,) = Sample(name="denoise-tissue").load(split)
        parts.append([_cropped(case.image.pixels[:, 0])])
    return parts[0], parts[1]


def kather(folder: Path) -> tuple[list[Picture], list[Picture]]:
    """(train, test), split by slide; tiles of empty background are left out."""
    train: list[Picture] = []
    test: list[Picture] = []
    with zipfile.ZipFile(folder / "tiles.zip") as tiles, (folder / "index.csv").open() as listed:
        for row in csv.DictReader(listed):
            slide = SLIDE.search(row["original_name"])
            if slide is None or EMPTY in row["file"]:
                continue
            pixels = np.asarray(Pillow.open(io.BytesIO(tiles.read(row["file"]))).convert("RGB"))
            (test if slide[1] in HELD_OUT else train).append(_cropped(np.moveaxis(pixels, 2, 0)))
    return train, test


def _cropped(pixels: NDArray[Any]) -> Picture:
    rows, columns = (size - size % 8 for size in pixels.shape[1:])
    return pixels[:, :rows, :columns].astype(np.float32) / 255


def trained(
    objectives: Sequence[ObjectiveSettings], pictures: Sequence[Picture], *, steps: int, seed: int
) -> Autoencoder:
    """An eighth of the size, 16 channels: 1/12 of the numbers. Batches of random patches; the seed decides every
    one."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    device = choose_device("auto")
    network = ConvAutoencoderSettings(features=(16, 32, 64), bottleneck=16).build(3, 3).to(device)
    loss, optimizer = Loss(objectives).to(device), torch.optim.Adam(network.parameters(), lr=RATE)
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        x = torch.from_numpy(np.stack([_patch(pictures, rng) for _ in range(BATCH)])).to(device)
        total, _ = loss(network.autoencode(x), x, step / steps)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return network.cpu().eval()


def _patch(pictures: Sequence[Picture], rng: np.random.Generator) -> Picture:
    picture = pictures[rng.integers(len(pictures))]
    row, column = (rng.integers(size - PATCH + 1) for size in picture.shape[1:])
    patch = picture[:, row : row + PATCH, column : column + PATCH]
    return np.ascontiguousarray(patch[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])])


def reconstructed(network: Autoencoder, picture: Picture) -> Picture:
    with torch.inference_mode():
        return network(torch.from_numpy(picture)[None])[0].clamp(0, 1).numpy()


def quality(made: Picture, truth: Picture, distance: Any) -> dict[str, float]:
    from scipy.ndimage import laplace

    with torch.inference_mode():
        apart = distance(*(torch.from_numpy(each)[None] for each in (made, truth))).item()
    sharpness = [np.square(laplace(each.mean(0))).mean() for each in (made, truth)]
    planes = made[:, None], truth[:, None]
    return {
        "PSNR, dB": psnr(*planes, 1.0),
        "SSIM": ssim(*planes, 1.0),
        "feature distance": apart,
        "sharpness": float(sharpness[0] / sharpness[1]),
    }


def compare(
    pictures: tuple[list[Picture], list[Picture]], weights: Path | None, *, steps: int, seeds: Sequence[int]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[Picture]]]:
    """(name -> measure -> a number for each seed, name -> reconstructions of the last seed)."""
    train, test = pictures
    distance = feature_distance(weights)
    kinds: Mapping[str, list[ObjectiveSettings]] = {
        "mse": [MSE()],
        "mse + perceptual": [MSE(), Perceptual(weights=weights)],
    }
    numbers: dict[str, dict[str, list[float]]] = {name: {} for name in kinds}
    shown: dict[str, list[Picture]] = {"truth": test}
    for seed in seeds:
        for name, objectives in kinds.items():
            network = trained(objectives, train, steps=steps, seed=seed)
            shown[name] = [reconstructed(network, picture) for picture in test]
            each = [quality(made, truth, distance) for made, truth in zip(shown[name], test, strict=True)]
            for measure in each[0]:
                numbers[name].setdefault(measure, []).append(float(np.mean([one[measure] for one in each])))
    return numbers, shown


def picture_of(shown: Mapping[str, Sequence[Picture]], rows: int = 4, side: int = 96, zoom: int = 2) -> Pillow.Image:
    """A row a picture (the middle of it), a column each of `shown`."""
    from PIL import ImageDraw, ImageFont

    gap, head, size = 6, 22, side * zoom
    chosen = np.linspace(0, len(shown["truth"]) - 1, min(rows, len(shown["truth"]))).astype(int)
    sheet = Pillow.new("RGB", (len(shown) * (size + gap) - gap, head + len(chosen) * (size + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (name, pictures) in enumerate(shown.items()):
        draw.text((column * (size + gap), 2), name, fill="black", font=font)
        for row, at in enumerate(chosen):
            middle = [(length - side) // 2 for length in pictures[at].shape[1:]]
            cut = pictures[at][:, middle[0] : middle[0] + side, middle[1] : middle[1] + side]
            tile = Pillow.fromarray(np.moveaxis(np.rint(cut * 255).astype(np.uint8), 0, 2))
            place = (column * (size + gap), head + row * (size + gap))
            sheet.paste(tile.resize((size, size), Pillow.Resampling.NEAREST), place)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kather", type=Path, help="the folder of Kather's tiles")
    parser.add_argument("--weights", type=Path, help="VGG16's, in torchvision's format; without: fixed filters")
    parser.add_argument("--picture", type=Path, help="where the reconstructions are drawn")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--steps", type=int, default=4000, help="of each training")
    arguments = parser.parse_args()
    pictures = kather(arguments.kather) if arguments.kather else tissue()
    numbers, shown = compare(pictures, arguments.weights, steps=arguments.steps, seeds=arguments.seeds)
    print(f"{len(pictures[0])} pictures to train on, {len(pictures[1])} held out; {describe(arguments.weights)}\n")
    measures = list(numbers["mse"])
    rows = [
        (name, *(f"{np.mean(found[measure]):.4f} +- {np.std(found[measure]):.4f}" for measure in measures))
        for name, found in numbers.items()
    ]
    print(table(("trained for", *measures), rows))
    if arguments.picture:
        picture_of(shown, rows=3).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
