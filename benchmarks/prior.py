"""Does a prior know which code follows which? Bits a code on tissue that neither network nor prior has seen.

The model is demo/codes-tissue: a VQ-VAE and its prior, trained on the upper part of one picture, the prior's weights
chosen on the part below it, measured on the lowest part. Beside it: the entropy of the test codes themselves, which no
model that ignores neighbours can beat, not even one that was fitted to the test.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from benchmarks.models import table, trained
from medae.backends.torch import prior_of
from medae.experiment import Experiment
from medae.io.answer import write_files
from medae.latent import LatentSpace, sample
from medae.metrics.book import Usage
from medae.package import ModelPackage
from medae.training.prior import bits_per_code, codes_of


def measure(package: ModelPackage) -> dict[str, Any]:
    experiment = Experiment.model_validate(package.card.experiment)
    space, prior = LatentSpace(package, "auto"), prior_of(package)
    found: dict[str, Any] = {"entries": prior.codes, "grid": prior.grid}
    for split in ("train", "validation", "test"):
        codes = codes_of(space, experiment, split)
        usage = Usage.of(codes, prior.codes)
        found[split] = {
            "prior": bits_per_code(prior, codes),
            "entropy": usage.bits,
            "used": usage.used,
            "codes": int(usage.counts.sum()),
        }
    return found


def show(found: dict[str, Any]) -> str:
    rows = [
        [split, found[split]["codes"], found[split]["used"], found[split]["entropy"], found[split]["prior"]]
        for split in ("train", "validation", "test")
    ]
    gain = found["test"]["entropy"] - found["test"]["prior"]
    return "\n\n".join(
        [
            f"{found['entries']} entries, {math.log2(found['entries']):.2f} bits if all were equally likely",
            table(["part", "codes", "entries used", "bits without neighbours", "bits by the prior"], rows),
            f"the prior saves {gain:.2f} bits a code ({gain / found['test']['entropy']:.0%}) on the test part",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, help="a package trained by demo/codes-tissue, instead of training one")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--out", type=Path, help="leave the package and pictures of samples here")
    arguments = parser.parse_args()
    package = trained("demo/codes-tissue.yaml", [f"training.seed={arguments.seed}"], arguments.package)
    print(show(measure(package)))
    if arguments.out is not None:
        package.save(arguments.out / "package")
        space = LatentSpace(package, "auto")
        write_files([sample(space, count=16, seed=0)], arguments.out)


if __name__ == "__main__":
    main()
