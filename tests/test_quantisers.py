"""Quantisers: books that stay alive, gradients that pass, averages that are what they say."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medae.errors import SettingsError
from medae.networks import Output, VQVAESettings
from medae.networks.latent import Code, Codes
from medae.networks.quantisers import EMAQuantiser, EMASettings, FSQSettings, Quantiser, ScalarQuantiser
from medae.networks.quantisers.base import flat
from medae.objectives import MSE, Commitment, Loss

EMA, FSQ = EMASettings(codes=32, channels=3), FSQSettings(levels=(5, 4, 3))
both = pytest.mark.parametrize("settings", [EMA, FSQ], ids=lambda settings: settings.kind)


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(settings: EMASettings | FSQSettings, seed: int = 0, steps: int = 3) -> Quantiser:
    """A quantiser, at evaluation, after some steps."""
    torch.manual_seed(seed)
    quantiser = settings.build().train()
    for step in range(steps):
        quantiser(draw(2, 3, 9, 7, seed=step))
    return quantiser.eval()


def perplexity(indices: Tensor) -> float:
    share = torch.bincount(indices.flatten()) / indices.numel()
    return torch.exp(-torch.special.xlogy(share, share).sum()).item()


# ---- both


@both
@pytest.mark.parametrize("size", [(5, 7), (2, 3, 4)])
def test_what_comes_out_are_entries_of_the_book(settings: EMASettings | FSQSettings, size: tuple[int, ...]) -> None:
    quantiser = seen(settings)
    z = draw(2, 3, *size, seed=8)
    codes = quantiser(z)
    assert codes.indices.shape == (2, *size) and codes.indices.dtype == torch.int64
    assert codes.indices.min() >= 0 and codes.indices.max() < quantiser.codes == settings.book[0]
    assert torch.equal(codes.vectors, quantiser.vectors(codes.indices))
    again = quantiser(z)
    assert torch.equal(again.vectors, codes.vectors)


@both
def test_gradients_pass_as_if_nothing_were_rounded(settings: EMASettings | FSQSettings) -> None:
    quantiser, z, weights = seen(settings), draw(2, 3, 4, 4).requires_grad_(), draw(2, 3, 4, 4, seed=2)
    (quantiser(z).vectors * weights).sum().backward()
    same = z.detach().clone().requires_grad_()
    smooth = same
    if isinstance(quantiser, ScalarQuantiser):
        rows = quantiser._bounded(quantiser._whitened(flat(same))) / (quantiser.levels // 2)
        smooth = rows.reshape(2, 4, 4, 3).movedim(-1, 1)
    (smooth * weights).sum().backward()
    torch.testing.assert_close(z.grad, same.grad)


@both
def test_half_precision_around_it_changes_nothing(settings: EMASettings | FSQSettings) -> None:
    quantiser = seen(settings).train()
    other = copy.deepcopy(quantiser)
    z = draw(2, 3, 9, 7, seed=4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantiser(z)
    outside = other(z.float())
    assert inside.vectors.dtype == torch.float32
    assert torch.equal(inside.indices, outside.indices) and torch.equal(inside.vectors, outside.vectors)
    for name, value in quantiser.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@both
def test_what_is_no_number_does_not_become_one(settings: EMASettings | FSQSettings) -> None:
    z = draw(1, 3, 4, 4)
    z[0, 1, 2, 3] = float("nan")
    vectors = seen(settings)(z).vectors
    assert vectors[0, 1, 2, 3].isnan()
    assert vectors[0, :, :2].isfinite().all()


# ---- ema


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mixture_of_200_clusters_uses_the_book(channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    centres = draw(200, channels, seed=seed + 100, scale=1)
    quantiser = EMASettings(codes=256, channels=channels).build().train()

    def sample(count: int, seed: int) -> Tensor:
        chosen = torch.randint(200, (count,), generator=torch.Generator().manual_seed(seed))
        return (centres[chosen] + draw(count, channels, seed=seed, scale=0.05))[..., None, None]

    for step in range(100):
        quantiser(sample(1024, 1000 * seed + step))
    codes = quantiser.eval()(sample(20_000, 77))
    assert perplexity(codes.indices) >= 180
    # no cluster is left without an entry: the error is that within the clusters, whose variance is .0025
    assert (codes.vectors - codes.encoded).square().mean() < 0.0033


def test_averages_are_unbiased_from_the_first_step() -> None:
    torch.manual_seed(0)
    quantiser = EMASettings(codes=4, channels=2, decay=0.9, restart_below=0).build().train()
    assert isinstance(quantiser, EMAQuantiser)
    centres = torch.tensor([[9.0, 0], [0, 9], [-9, 0], [0, -9]])
    counts, sums = [], []
    for step in range(5):
        chosen = torch.randint(4, (64,), generator=torch.Generator().manual_seed(step))
        rows = centres[chosen] + draw(64, 2, seed=step, scale=0.1)
        indices = quantiser(rows[..., None, None]).indices.flatten()
        counts.append(torch.bincount(indices, minlength=4).float())
        sums.append(torch.stack([rows[indices == entry].sum(0) for entry in range(4)]))
        weights = 0.9 ** torch.arange(step, -1, -1.0)
        weights = weights / weights.sum()
        expected = sum(weight * count for weight, count in zip(weights, counts, strict=True))
        torch.testing.assert_close(quantiser.usage, expected)
        means = sum(weight * one for weight, one in zip(weights, sums, strict=True)) / expected[:, None]
        torch.testing.assert_close(quantiser.book, means)


def test_an_entry_that_nothing_chooses_begins_anew() -> None:
    quantiser = seen(EMA).train()
    assert isinstance(quantiser, EMAQuantiser)
    far = torch.tensor(7)
    with torch.no_grad():
        quantiser.sums[far] = 1e4 * quantiser.usage[far]
    for step in range(200):
        quantiser(draw(2, 3, 9, 7, seed=step))
    assert quantiser.book.abs().max() < 10
    assert torch.bincount(quantiser.eval()(draw(40, 3, 9, 7)).indices.flatten(), minlength=32).min() > 0


def test_a_book_larger_than_the_batch_and_a_batch_of_one_value_are_no_trouble() -> None:
    torch.manual_seed(0)
    quantiser = EMASettings(codes=64, channels=2).build().train()
    for _ in range(5):
        codes = quantiser(torch.full((2, 2, 3, 3), 0.25))
        assert torch.equal(codes.vectors, torch.full((2, 2, 3, 3), 0.25))
    assert quantiser.book.isfinite().all()


def test_the_book_is_a_function_of_the_seed_and_evaluation_leaves_it_alone() -> None:
    first, same, other = seen(EMA), seen(EMA), seen(EMA, seed=1)
    assert torch.equal(first.book, same.book) and not torch.equal(first.book, other.book)
    first(draw(2, 3, 9, 7, seed=99))
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_saved_book_goes_on_as_it_was() -> None:
    first, second = seen(EMA, steps=4).train(), EMA.build()
    second.load_state_dict(first.state_dict())
    for step in range(30):
        for quantiser in (first, second.train()):
            torch.manual_seed(step)
            quantiser(draw(2, 3, 9, 7, seed=step))
    assert torch.equal(first.book, second.book)


def test_an_average_of_two_books_is_the_mean_of_all_that_chose_an_entry() -> None:
    """So a moving average of the weights may take in a book: a ghost that nothing chose does not weigh."""
    first, second = seen(EMA), seen(EMA, seed=1)
    with torch.no_grad():
        first.usage[5], first.sums[5] = 1e-6, 1e-6 * torch.tensor([500.0, 0, 0])
        average = EMA.build()
        average.usage.copy_((first.usage + second.usage) / 2)
        average.sums.copy_((first.sums + second.sums) / 2)
    torch.testing.assert_close(average.book[5], second.book[5], rtol=1e-2, atol=1e-3)
    weighted = (first.usage[:, None] * first.book + second.usage[:, None] * second.book) / (2 * average.usage[:, None])
    torch.testing.assert_close(average.book, weighted)


# ---- fsq


def test_a_book_that_could_not_be_counted_is_refused() -> None:
    with pytest.raises(ValidationError, match="a book of 68719476736 entries, and the largest has 1048576"):
        FSQSettings(levels=(64,) * 6)
    with pytest.raises(ValidationError, match="less than or equal to 1048576"):
        EMASettings(codes=2**20 + 1)
    assert FSQSettings(levels=(32,) * 4).book[0] == 2**20


@pytest.mark.parametrize("levels", [(2,), (3,), (5, 4, 3), (8, 6, 5)])
def test_every_entry_of_fixed_levels_can_be_reached_and_none_beyond(levels: tuple[int, ...]) -> None:
    quantiser = FSQSettings(levels=levels).build().eval()
    assert isinstance(quantiser, ScalarQuantiser)
    codes = quantiser(draw(4000, len(levels), 3, 3, scale=2.5))
    assert codes.indices.unique().tolist() == list(range(quantiser.codes))
    assert torch.equal(codes.vectors, quantiser.vectors(codes.indices))
    for channel, count in enumerate(levels):
        values = codes.vectors[:, channel].unique()
        assert len(values) == count and values.abs().max() <= 1
        assert torch.allclose(values.diff(), values.diff()[:1])
    assert torch.equal(quantiser(torch.full((1, len(levels), 1, 1), -1e9)).indices, torch.tensor([[[0]]]))
    assert torch.equal(
        quantiser(torch.full((1, len(levels), 1, 1), 1e9)).indices, torch.tensor([[[quantiser.codes - 1]]])
    )


def test_levels_of_whitened_normals_are_equally_likely() -> None:
    torch.manual_seed(0)
    quantiser = FSQSettings(levels=(8, 6, 5)).build().train()
    mixed = draw(3, 3, seed=1)
    for step in range(100):
        quantiser((draw(1000, 3, seed=step) @ mixed + 7)[..., None, None])
    codes = quantiser.eval()((draw(50_000, 3, seed=999) @ mixed + 7)[..., None, None])
    count = torch.bincount(codes.indices.flatten(), minlength=240) * 240 / 50_000
    assert count.min() > 0.7 and count.max() < 1.3  # of 208 an entry: four standard deviations to either side
    assert perplexity(codes.indices) > 0.99 * 240


def test_encodings_are_whitened_so_that_no_level_is_out_of_reach() -> None:
    """Small values that all channels share, far from zero, as an encoder begins with."""
    torch.manual_seed(0)
    quantiser = FSQSettings(levels=(8, 6, 5)).build().train()
    shared = draw(200, 1, 6, 6, scale=0.01)
    for step in range(3):
        quantiser(3 + shared + draw(200, 3, 6, 6, seed=step, scale=0.001))
    codes = quantiser.eval()(3 + shared + draw(200, 3, 6, 6, seed=9, scale=0.001))
    assert len(codes.indices.unique()) == quantiser.codes
    again = FSQSettings(levels=(8, 6, 5)).build().eval()
    again.load_state_dict(quantiser.state_dict())
    assert torch.equal(again(codes.vectors).indices, quantiser(codes.vectors).indices)


def test_a_channel_that_says_nothing_is_no_trouble() -> None:
    quantiser = FSQSettings(levels=(5, 5)).build().train()
    for step in range(4):
        z = draw(4, 2, 5, 5, seed=step)
        z[:, 1] = 0.5
        assert quantiser(z).vectors.isfinite().all()
    assert quantiser.eval()(torch.full((1, 2, 3, 3), 0.5)).vectors.isfinite().all()


# ---- commitment


def test_commitment_pulls_encodings_to_their_entries() -> None:
    quantiser = seen(EMA)
    z = draw(2, 3, 4, 4, seed=6).requires_grad_()
    codes = quantiser(z)
    prediction = torch.zeros(2, 1, 8, 8, requires_grad=True)
    total, terms = Loss([MSE(), Commitment()])(Output(prediction, codes), torch.zeros(2, 1, 8, 8), 0.5)
    distance = (z - quantiser.vectors(codes.indices)).square().mean()
    torch.testing.assert_close(terms["commitment"], distance.detach())
    torch.testing.assert_close(total, 0.25 * distance)
    total.backward()
    torch.testing.assert_close(z.grad, 0.25 * 2 * (z - quantiser.vectors(codes.indices)).detach() / z.numel())


@pytest.mark.parametrize("latent", [None, Code(draw(1, 3, 2, 2)), FSQ.build()(draw(1, 3, 2, 2))])
def test_commitment_without_a_learned_book_is_refused(latent: Code | Codes | None) -> None:
    with pytest.raises(SettingsError, match="vqvae"):
        Loss([Commitment()])(Output(torch.zeros(1, 1, 8, 8), latent), torch.zeros(1, 1, 8, 8), 0.5)


# ---- the network


def test_the_encoder_and_decoder_are_monais() -> None:
    from monai.networks.nets.vqvae import VQVAE

    ours = VQVAESettings(features=(6, 8), residual_units=2, quantiser=EMA).build(2, 2)
    theirs = VQVAE(2, 2, 2, (6, 8), 2, (6, 8), ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2, 32, 3)
    theirs.encoder.load_state_dict(ours.encoder.state_dict())
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    x, z = draw(1, 2, 12, 8), draw(1, 3, 3, 2)
    assert torch.equal(ours.encoder(x), theirs.encode(x))
    assert torch.equal(ours.decode(Code(z)), theirs.decode(z))


def test_indices_alone_can_be_decoded() -> None:
    network = VQVAESettings(features=(6, 8), quantiser=EMA).build(1, 1)
    network.train()(draw(2, 1, 16, 16))
    network.eval()
    codes = network.encode(draw(2, 1, 16, 16))
    assert torch.equal(network.decode(network.codes(codes.indices)), network.decode(codes))
    assert torch.equal(network.quantise(codes).indices, codes.indices)
