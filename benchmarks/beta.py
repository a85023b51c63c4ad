"""What happens when beta is too high? One figure: the same VAE at four prices of its code.

Reconstructions of held-out digits, draws from the prior, and the nats that each number of the code holds. With beta
near 0 the code is precise and the prior knows nothing of it: draws look like no digit. At 1 (the evidence bound) both
are fair. Higher, fewer numbers are worth their price, and the reconstructions of different digits become alike. At last
the code is empty, every answer is the mean digit, and the loss still looks fine: posterior collapse, which medae warns
of.

    python -m benchmarks.beta --picture FILE.png
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.codes import LATENT, digits, vae
from medae.networks import Autoencoder, Code

SHOWN = (0.01, 1.0, 10.0, 100.0)
COUNT = 10
STEPS = 600


def row(network: Autoencoder, test: torch.Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """(reconstructions, draws from the prior): strips of digits."""
    z = torch.randn(COUNT, LATENT, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        made, drawn = network(test[:COUNT]), network.decode(Code(z))
    return strip(made), strip(drawn)


def strip(images: torch.Tensor) -> NDArray[Any]:
    """(N, 1, 8, 8) -> 8 x 9 N, white between them."""
    padded = np.pad(images.clamp(0, 1).numpy()[:, 0], ((0, 0), (0, 0), (0, 1)), constant_values=1)
    return np.concatenate(list(padded), axis=1)


def draw(path: Path, seed: int) -> None:
    from matplotlib.figure import Figure

    _, test = digits()
    figure = Figure(figsize=(11, 0.9 + 1.05 * len(SHOWN)), layout="constrained")
    axes = figure.subplots(len(SHOWN) + 1, 3, width_ratios=(3, 3, 2))
    axes[0, 0].imshow(strip(test[:COUNT]), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("held-out digits")
    for beta, (left, middle, right) in zip(SHOWN, axes[1:], strict=True):
        network, found = vae(beta, steps=STEPS, seed=seed)
        print(f"beta {beta:g}: {found}", flush=True)
        for axis, image, name in zip(
            (left, middle), row(network, test), ("reconstructed", "drawn from the prior"), strict=True
        ):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"beta {beta:g}: {name}")
        nats = sorted(found["kl_per_dimension"], reverse=True)
        said = "collapsed" if found["collapsed"] else f"{found['kl_nats']:.2g} nats"
        right.bar(range(LATENT), nats, color="tab:blue")
        right.set_ylim(0, max(1, *nats))  # what is next to nothing looks like it
        right.set_title(f"{found['active_units']} of {LATENT} active, {said}", fontsize=10)
        right.set_ylabel("nats")
        right.set_xticks([])
    for axis in [*axes[:, 0], *axes[:, 1], axes[0, 2]]:
        axis.axis("off")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, required=True, help="where the figure goes")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    arguments = parser.parse_args()
    draw(arguments.picture, arguments.seed)


if __name__ == "__main__":
    main()
