"""Do the objectives of a code do what they say: sparsity, the price of the latent, likelihoods?

On the handwritten digits that come with scikit-learn (1,797 pictures of 8 x 8), two thirds of them for training; the
likelihoods on 8 x 8 patches of 8-bit tissue. Mean over training seeds. (What happens when beta is too high, `beta.py`
draws.)

    python -m benchmarks.codes [--seeds 0 1 2] [--only sparsity prices likelihoods]
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import table
from medae.data import Split
from medae.data.samples import Sample
from medae.metrics.posterior import Posterior
from medae.networks import Autoencoder, ConvAutoencoderSettings, DenseAutoencoderSettings, Gaussian, VAESettings
from medae.objectives import (
    KL,
    MSE,
    CategoricalLikelihood,
    GaussianLikelihood,
    LikelihoodTerm,
    Loss,
    ObjectiveSettings,
    SparseKL,
    SparseL1,
    SparseL2,
)

RHO = 0.05
LAMBDAS = (0.0, 0.01, 0.03, 0.1)
BETAS = (1.0, 100.0)
SPLITS: tuple[Split, Split] = ("train", "test")
STEPS = {"sparse": 600, "vae": 200, "bits": 600}
KL_LAMBDAS = (0.5, 2.0)
CRAFT: dict[str, dict[str, Any]] = {
    "beta 100, free bits .2": {"beta": 100.0, "free_bits": 0.2},
}
LATENT = 8
SILENT = 1e-6


def digits() -> tuple[Tensor, Tensor]:
    """(train, test), each (N, 1, 8, 8) in 0..1, 17 grey levels."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images.astype(np.float32) / 16)[:, None]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[chosen[:1198]], images[chosen[1198:]]


def fit(
    settings: Any, objectives: Sequence[ObjectiveSettings], x: Tensor, *, steps: int, seed: int, batch: int = 64
) -> Autoencoder:
    """A network of one channel, trained by Adam on random batches of 64; every draw follows from the seed."""
    torch.manual_seed(seed)
    network: Autoencoder = settings.build(1, 1)
    loss = Loss(objectives)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
        some = x[torch.randint(len(x), (64,))]
        total, _ = loss(network.autoencode(some), some, step / steps)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return network.eval()


def sparse(objectives: Sequence[ObjectiveSettings], activation: str, *, steps: int, seed: int) -> dict[str, float]:
    """An overcomplete code (128 numbers for 64 pixels): its activity and the reconstruction, on the test digits."""
    train, test = digits()
    settings = DenseAutoencoderSettings(size=(8, 8), widths=(128,), code=activation)
    network = fit(settings, [MSE(), *objectives], train, steps=steps, seed=seed)
    with torch.no_grad():
        output = network.autoencode(test)
    assert output.latent is not None
    z = output.latent.point().z.transpose(0, 1).flatten(1)
    mean = z.mean(1)
    return {
        "mean activation": mean.mean().item(),
        "units within 3 rho": (mean <= 3 * RHO).float().mean().item(),
        "silent": (z.abs() < SILENT).float().mean().item(),
        "mean square": z.square().mean().item(),
        "mse": (output.prediction - test).square().mean().item(),
    }


def vae(beta: float, *, steps: int, seed: int, **kl: Any) -> tuple[Autoencoder, dict[str, Any]]:
    """A VAE of 8 numbers with a gaussian decoder of optimal variance: beta is the literature's."""
    train, test = digits()
    settings = VAESettings(features=(8, 16), size=(8, 8), latent_channels=LATENT)
    objectives = [GaussianLikelihood(variance="optimal"), KL(beta=beta, **kl)]
    network = fit(settings, objectives, train, steps=steps, seed=seed)
    with torch.no_grad():
        output = network.autoencode(test)
    assert isinstance(output.latent, Gaussian)
    posterior = Posterior()
    posterior.see(output.latent.mean.numpy(), output.latent.log_variance.numpy())
    return network, posterior.summary() | {"mse": (output.prediction - test).square().mean().item()}


def tissue() -> tuple[Tensor, Tensor]:
    """(train, test): 8-bit tissue, the green of patches of the picture that comes with medae, (N, 1, 8, 8) in 0..1."""
    found = []
    for split in SPLITS:
        (case,) = Sample(name="denoise-tissue").load(split)
        green = torch.from_numpy(case.image.pixels[1, 0].astype(np.float32) / 255)
        found.append(green.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 1, 8, 8))
    return found[0], found[1]


def bits(decoder: str, objective: ObjectiveSettings, *, steps: int, seed: int) -> float:
    """Bits per value of 8-bit test patches, given a code of 2 x 2 x 4 numbers: one autoencoder with another decoder.

    A convolutional one, which learns what it says of a value from all 64 places alike.
    """
    train, test = tissue()
    settings = ConvAutoencoderSettings(features=(32, 64), bottleneck=4, decoder=decoder)
    network = fit(settings, [objective], train, steps=steps, seed=seed)
    term = objective.build()
    assert isinstance(term, LikelihoodTerm)
    with torch.no_grad():
        return term.bits_per_value(network.autoencode(test), test).item()


DECODERS: dict[str, tuple[str, ObjectiveSettings]] = {
    "gaussian, variance .01": ("point", GaussianLikelihood(variance=0.01)),
    "gaussian, optimal": ("point", GaussianLikelihood(variance="optimal")),
    "gaussian, learned": ("gaussian", GaussianLikelihood(variance="learned")),
    "categorical": ("categorical", CategoricalLikelihood()),
}


def priced(seed: int, beta: float, steps: int, **kl: Any) -> dict[str, float]:
    _, found = vae(beta, steps=steps, seed=seed, **kl)
    least = min(found["kl_per_dimension"])
    wanted = {"active_units": "active units", "kl_nats": "KL, nats", "mse": "mse", "collapsed": "alarm"}
    return {name: float(found[key]) for key, name in wanted.items()} | {"least KL of a dimension": least}


def over(seeds: Sequence[int], measure: Callable[[int], Mapping[str, float]]) -> dict[str, str]:
    """name -> mean +- standard deviation over the seeds."""
    found = [measure(seed) for seed in seeds]
    values = {name: np.array([float(each[name]) for each in found]) for name in found[0]}
    return {name: f"{each.mean():.4g} +- {each.std():.2g}" for name, each in values.items()}


def sparsity(seeds: Sequence[int]) -> Iterator[str]:
    def each(activation: str, *objectives: ObjectiveSettings) -> dict[str, str]:
        return over(seeds, lambda seed: sparse(objectives, activation, steps=STEPS["sparse"], seed=seed))

    rows = {"no penalty": each("sigmoid")}
    rows |= {f"lambda {weight:g}": each("sigmoid", SparseKL(rho=RHO, weight=weight)) for weight in KL_LAMBDAS}
    yield _table(f"sparse_kl, rho {RHO}: a code of 128 sigmoids", rows)
    rows = {f"lambda {w:g}": each("relu", *([SparseL1(weight=w)] if w else [])) for w in LAMBDAS}
    rows |= {"(sparse_l2, lambda .1)": each("relu", SparseL2(weight=0.1))}
    yield _table("sparse_l1: a code of 128 rectified units", rows)


def prices(seeds: Sequence[int]) -> Iterator[str]:
    def each(beta: float, **kl: Any) -> dict[str, str]:
        return over(seeds, lambda seed: priced(seed, beta, STEPS["vae"], **kl))

    rows = {f"beta {beta:g}": each(beta) for beta in BETAS} | {name: each(**kl) for name, kl in CRAFT.items()}
    yield _table("vae: the literature's beta", rows)


def likelihoods(seeds: Sequence[int]) -> Iterator[str]:
    def each(decoder: str, objective: ObjectiveSettings) -> dict[str, str]:
        return over(seeds, lambda seed: {"bits": bits(decoder, objective, steps=STEPS["bits"], seed=seed)})

    yield _table("bits per 8-bit value, given the code", {name: each(*one) for name, one in DECODERS.items()})


TABLES = {"sparsity": sparsity, "prices": prices, "likelihoods": likelihoods}


def _table(title: str, found: Mapping[str, Mapping[str, str]]) -> str:
    names = list(next(iter(found.values())))
    return f"\n{title}\n\n" + table(("", *names), [(row, *values.values()) for row, values in found.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES), help="of the questions")
    arguments = parser.parse_args()
    for name in arguments.only:
        for text in TABLES[name](arguments.seeds):
            print(text, flush=True)


if __name__ == "__main__":
    main()
