"""Patches follow from (seed, epoch, index) alone, cover the cases evenly, and mirror what is too small."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from medae.data.augment import Affine, AugmentSettings, Blur, Intensity, Noise
from medae.data.patches import Patches, PatchSampler, PreparedCase, generator_at
from medae.errors import SettingsError

AUGMENT = AugmentSettings(
    flip=("rows",), rot90=True, affine=Affine(), intensity=Intensity(), blur=Blur(), noise=Noise()
)


def case(shape=(1, 5, 40, 33), seed=0, labels=True) -> PreparedCase:
    rng = np.random.default_rng(seed)
    image = rng.random(shape, dtype=np.float32)
    return PreparedCase(image, (image[:1] > 0.9).astype(np.uint8) if labels else None)


def loader(workers: int, length=12, **options) -> tuple[DataLoader, PatchSampler]:
    data = Patches([case(seed=1), case((1, 7, 20, 50), 2)], size=(16, 16), length=length, seed=5, augment=AUGMENT)
    sampler = PatchSampler(length)
    return DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers, **options), sampler


def epochs(numbers, workers, **options) -> list[torch.Tensor]:
    batches, sampler = loader(workers, **options)
    found = []
    for number in numbers:
        sampler.epoch = number
        found.append(torch.cat([batch["image"] for batch in batches]))
    return found


def test_workers_and_resuming_change_nothing():
    alone = epochs([0, 1, 2], workers=0)
    both = epochs([0, 1, 2], workers=2, persistent_workers=True)
    for one, other in zip(alone, both, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(epochs([2], workers=2)[0], alone[2]), "resumed at epoch 2"
    assert not torch.equal(alone[0], alone[1])


def test_threads_change_nothing():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = epochs([0], workers=0)[0]
        torch.set_num_threads(2)
        assert torch.equal(epochs([0], workers=0)[0], one)
    finally:
        torch.set_num_threads(before)


def test_fabrics_loader_does_not_change_the_epoch():
    from lightning_fabric import Fabric

    batches, sampler = loader(0)
    batches = Fabric(accelerator="cpu", devices=1).setup_dataloaders(batches)
    sampler.epoch = 2
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), epochs([2], workers=0)[0])


@settings(deadline=None)
@given(*[st.integers(0, 2**32)] * 3)
def test_draws_are_a_function_of_seed_epoch_and_index(seed, epoch, index):
    first = generator_at(seed, epoch, index).random(4)
    assert np.array_equal(first, generator_at(seed, epoch, index).random(4))
    for other in ((seed + 1, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)):
        assert not np.array_equal(first, generator_at(*other).random(4))


def test_a_patch_is_a_piece_of_a_slice():
    volume = np.arange(5 * 40 * 33, dtype=np.float32).reshape(1, 5, 40, 33)
    data = Patches([PreparedCase(volume, volume.astype(np.int32))], size=(8, 6), length=50, seed=0)
    slices = set()
    for index in range(len(data)):
        item = data[0, index]
        assert item["image"].shape == item["target"].shape == (1, 8, 6)
        assert (item["image"].dtype, item["target"].dtype) == (torch.float32, torch.int64)
        assert torch.equal(item["image"].long(), item["target"])
        slices.add(int(item["image"][0, 0, 0]) // (40 * 33))
        assert torch.equal(item["image"][0, 1:] - item["image"][0, :-1], torch.full((7, 6), 33.0))
        assert torch.equal(item["image"][0, :, 1:] - item["image"][0, :, :-1], torch.ones(8, 5))
    assert slices == set(range(5))


def test_a_volume_patch_reaches_both_ends():
    volume = np.arange(5 * 6 * 7, dtype=np.float32).reshape(1, 5, 6, 7)
    data = Patches([PreparedCase(volume)], size=(4, 4, 4), length=300, seed=0)
    seen = torch.stack([data[0, index]["image"] for index in range(300)])
    assert seen.shape[1:] == (1, 4, 4, 4)
    assert (seen.min(), seen.max()) == (0, volume.max())
    assert "target" not in data[0, 0]


def test_every_case_has_its_share_in_every_epoch():
    cases = [PreparedCase(np.full((1, 1, 4, 4), n, np.float32)) for n in range(6)]
    cases.append(PreparedCase(np.full((1, 2, 4, 4), 6, np.float32)))
    data = Patches(cases, size=(4, 4), length=80, seed=0)
    orders = []
    for epoch in range(3):
        drawn = [int(data[epoch, index]["image"][0, 0, 0]) for index in range(80)]
        np.testing.assert_array_equal(np.bincount(drawn), [10] * 6 + [20])
        orders.append(drawn)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_foreground_is_found_wherever_it_is():
    labels = np.zeros((1, 6, 60, 60), np.uint8)
    labels[0, 4, 50, 3], labels[0, 1, 0, 59] = 1, 2
    cases = [PreparedCase(labels.astype(np.float32), labels)]
    found = Patches(cases, size=(8, 8), length=200, seed=0, foreground=1.0)
    held = [set(found[0, n]["target"].unique().tolist()) - {0} for n in range(200)]
    assert {1} in held
    assert {2} in held
    assert all(held)
    ones = sum(1 in each for each in held)
    assert 70 < ones < 130, "each label as often as the other"
    places = {tuple(found[0, n]["target"][0].nonzero()[0].tolist()) for n in range(200)}
    assert len(places) > 20, "not always in the middle"
    half = Patches(cases, size=(8, 8), length=400, seed=0, foreground=0.5)
    share = np.mean([bool(half[0, n]["target"].any()) for n in range(400)])
    assert share == pytest.approx(0.5, abs=0.1)


def test_foreground_where_there_is_none_is_anywhere():
    data = Patches([case(labels=False)], size=(8, 8), length=5, seed=0, foreground=1.0)
    assert data[0, 0]["image"].shape == (1, 8, 8)


@pytest.mark.parametrize("shape", [(1, 1, 3, 50), (1, 1, 1, 1), (1, 1, 20, 5)])
def test_what_is_too_small_is_mirrored_target_and_all(shape):
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    cases = [PreparedCase(image, np.rint(image * 100).astype(np.int32))]
    item = Patches(cases, size=(16, 16), length=4, seed=0)[0, 0]
    assert item["image"].shape == (1, 16, 16)
    assert torch.equal((item["image"] * 100).round().long(), item["target"])
    assert set(item["image"].unique().tolist()) <= set(image.ravel().tolist())


def test_a_clean_target_stays_real_and_keeps_its_channels():
    image = np.random.default_rng(0).random((3, 1, 20, 20), dtype=np.float32)
    item = Patches([PreparedCase(image, image * 2)], size=(8, 8), length=1, seed=0, augment=AUGMENT)[0, 0]
    assert item["target"].dtype == torch.float32
    assert item["target"].shape == (3, 8, 8)


def test_a_patch_does_not_share_memory_with_its_case():
    source = case()
    data = Patches([source], size=(40, 33), length=1, seed=0)
    before = source.image.copy()
    data[0, 0]["image"].zero_()
    np.testing.assert_array_equal(source.image, before)


@pytest.mark.parametrize(
    ("cases", "options"),
    [
        ([], {}),
        ([case()], {"size": (8,)}),
        ([case()], {"size": (0, 8)}),
        ([case()], {"length": 0}),
        ([case()], {"seed": -1}),
    ],
)
def test_what_cannot_be_cut_is_refused(cases, options):
    with pytest.raises(SettingsError):
        Patches(cases, **{"size": (8, 8), "length": 1, "seed": 0, **options})


def test_an_epoch_ends():
    data = Patches([case()], size=(8, 8), length=3, seed=0)
    assert len(data) == len(PatchSampler(3)) == 3
    assert list(PatchSampler(3, epoch=7)) == [(7, 0), (7, 1), (7, 2)]
    with pytest.raises(IndexError):
        data[0, 3]
