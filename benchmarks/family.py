"""The family side by side: what each autoencoder rebuilds of tissue that it has not seen, and how small its code is.

Every member is the shipped configuration of its kind, trained on the same tiles: 24 x 24 pixels of stained tissue that
comes with scikit-image (the VQ-VAEs too, without their prior). PSNR over the normal tiles of the test part; the numbers
of a code, or its bits where it is counted, for one tile of 1728 values. `--out` keeps the packages and some test tiles
as pictures, for `medae latent`.

    python -m benchmarks.family [--picture docs/pictures/family.png] [--out runs/family]
"""

import argparse
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.models import table, trained
from benchmarks.perceptual import Picture, picture_of
from medae.backends.torch import choose_device, network_of
from medae.data.samples import Sample
from medae.io.answer import AnswerFile, write_files
from medae.io.png import encode
from medae.metrics.detection import NORMAL
from medae.metrics.fidelity import psnr
from medae.networks import Codes, run
from medae.package import ModelPackage

CODED = ["data.name=anomaly-tiles", "training.patch=[24,24]", "training.steps=1500", "prior=null"]
MEMBERS: dict[str, tuple[str, list[str]]] = {
    "dense": ("autoencoders/anomaly-dense", []),
    "dense, sparse": ("autoencoders/anomaly-dense-sparse", []),
    "conv, flat": ("autoencoders/anomaly-conv-flat", []),
    "conv, a map": ("autoencoders/anomaly-conv", []),
    "vae": ("demo/anomaly-tissue", []),
    "segnet": ("autoencoders/anomaly-segnet", []),
    "vqvae, ema": ("demo/codes-tissue", CODED),
    "vqvae, fsq": ("demo/codes-tissue-fsq", CODED),
}


def tiles() -> NDArray[np.float32]:
    """(N, 3, 24, 24) in 0..1: the normal tiles of the test part."""
    cases = [loaded for loaded in Sample(name="anomaly-tiles").load("test") if loaded.case.label == NORMAL]
    return np.stack([loaded.image.pixels[:, 0].astype(np.float32) / 255 for loaded in cases])


def rebuilt(package: ModelPackage, x: NDArray[np.float32]) -> tuple[list[Picture], str]:
    """What the network makes of them, and the size of the code of one."""
    device = choose_device("auto")
    network = network_of(package).to(device).eval()
    with torch.inference_mode():
        said = run(network, torch.from_numpy(x).to(device))
    latent = said.latent
    assert latent is not None
    if isinstance(latent, Codes):
        bits = latent.indices[0].numel() * log2(network.quantiser.codes)
        size = f"{bits:.0f} bits"
    else:
        point = latent.point()
        places = "".join(" and places" for _ in point.context[:1])
        size = f"{point.z[0].numel()} numbers{places}"
    return list(said.prediction.clamp(0, 1).float().cpu().numpy()), size


def compare(names: Sequence[str], out: Path | None) -> tuple[list[tuple[object, ...]], dict[str, list[Picture]]]:
    """(rows of the table, what is drawn)."""
    x = tiles()
    rows: list[tuple[object, ...]] = []
    shown: dict[str, list[Picture]] = {"truth": list(x)}
    for name in names:
        config, changes = MEMBERS[name]
        package = trained(config, changes)
        if out:
            package.save(out / package.card.name)
        shown[name], size = rebuilt(package, x)
        each = [psnr(made[:, None], truth[:, None], 1.0) for made, truth in zip(shown[name], x, strict=True)]
        rows.append((name, config, size, f"{np.mean(each):.2f}"))
    return rows, shown


def keep(shown: dict[str, list[Picture]], out: Path, count: int = 6) -> None:
    """Some of the test tiles as pictures."""
    chosen: list[Any] = [np.moveaxis(np.rint(255 * tile).astype(np.uint8), 0, 2) for tile in shown["truth"][:count]]
    write_files([AnswerFile(f"tile-{n}.png", "image/png", encode(tile)) for n, tile in enumerate(chosen)], out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(MEMBERS), nargs="+", default=list(MEMBERS))
    parser.add_argument("--picture", type=Path, help="where the reconstructions are drawn")
    parser.add_argument("--out", type=Path, help="keeps the packages and some tiles")
    arguments = parser.parse_args()
    rows, shown = compare(arguments.only, arguments.out)
    print(table(("member", "configuration", "code of a tile", "PSNR, dB"), rows))
    if arguments.picture:
        picture_of(shown, rows=6, side=24, zoom=4).save(arguments.picture, optimize=True)
    if arguments.out:
        keep(shown, arguments.out)


if __name__ == "__main__":
    main()
