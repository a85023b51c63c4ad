"""Doubt from what costs no further answer: soft Dice in parts, usual scores, and both witnesses together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medae.image import Image
from medae.metrics.doubt import FEWEST, OF_SOFT_DICE, Doubt, SoftDice, Usual
from medae.predictor import Predictor
from medae.uncertainty import RepeatedPredictor
from tests.service_parts import segmenter

labels = arrays.arrays(np.uint8, (2, 5, 4), elements=st.integers(0, 2))
soft = arrays.arrays(np.float32, (2, 2, 5, 4), elements=st.floats(0, 0.5, width=32))
positive = st.floats(1e-6, 1e6)


def disagreement(labels: np.ndarray, probabilities: np.ndarray) -> float:
    sure = SoftDice()
    sure.add(labels, probabilities)
    return sure.disagreement


@given(labels)
def test_the_softer_the_less_sure(answer) -> None:
    hard = np.stack([(answer == label) for label in (1, 2)]).astype(np.float32)
    assert disagreement(answer, hard) == 0
    softened = [disagreement(answer, hard + by * (0.5 - hard)) for by in (0.2, 0.6, 1.0)]
    assert 0 < softened[0] <= softened[1] <= softened[2] <= 1
    assert disagreement(np.zeros_like(answer), hard) == (1 if answer.any() else 0)


@given(labels, soft, st.integers(0, 5))
def test_the_parts_say_what_the_whole_says(answer, probabilities, cut: int) -> None:
    sure = SoftDice()
    for part in (slice(0, cut), slice(cut, None)):
        sure.add(answer[:, part], probabilities[:, :, part])
    assert sure.disagreement == pytest.approx(disagreement(answer, probabilities), abs=1e-6)


def test_tiles_and_padding_change_nothing() -> None:
    image = Image.from_picture(np.random.default_rng(1).integers(0, 256, (77, 61), np.uint8))
    repeated, threshold = RepeatedPredictor(segmenter(), ["soft_dice"]), 0.4
    whole = repeated(image, threshold=threshold, probabilities=True)
    assert whole.probabilities is not None
    expected = disagreement(whole.image.pixels[0], whole.probabilities.pixels)
    assert 0 < expected < 1 and whole.scores[OF_SOFT_DICE] == pytest.approx(expected, abs=1e-6)
    repeated._tile_voxels = 40 * 40
    assert repeated(image, threshold=threshold).scores[OF_SOFT_DICE] == pytest.approx(expected, abs=1e-4)
    assert OF_SOFT_DICE not in Predictor(segmenter())(image).scores, "nobody asked"


@given(st.lists(positive, min_size=FEWEST, max_size=30), positive, positive)
def test_the_place_of_a_score_rises_with_it_and_is_the_middle_at_the_median(scores, one, other) -> None:
    usual = Usual.of(scores)
    assert usual is not None and usual.images == len(scores)
    low, high = sorted((usual.place(one), usual.place(other)))
    assert 0 <= low <= high <= 1 and (low, high) == (usual.place(min(one, other)), usual.place(max(one, other)))
    assert usual.place(usual.middle) == pytest.approx(0.5)


def test_places_are_shares_of_known_images_and_go_on_beyond_them() -> None:
    rng = np.random.default_rng(0)
    usual = Usual.of(np.exp(0.7 * rng.logistic(size=4000)).tolist())
    assert usual is not None
    fresh = np.array([usual.place(score) for score in np.exp(0.7 * rng.logistic(size=4000))])
    assert np.abs(np.quantile(fresh, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.03
    beyond = [usual.place(score) for score in (1e2, 1e3, 1e4)]
    assert 0.99 < beyond[0] < beyond[1] < beyond[2] < 1
    assert Usual.of([1.0] * (FEWEST - 1)) is None
    assert Usual.of([0.0] * FEWEST) is not None, "always as sure: known, with the least spread"


@given(positive, st.floats(0, 1))
def test_each_witness_adds_doubt(gate: float, soft_dice: float) -> None:
    doubt = Doubt(Usual(middle=1, spread=0.5, images=100), Usual(middle=0.05, spread=0.5, images=15))
    value = doubt(gate, soft_dice)
    assert 0 <= value <= 1
    assert doubt(2 * gate, soft_dice) >= value and doubt(gate, min(1, 2 * soft_dice)) >= value
    assert doubt(None, soft_dice) >= value, "nothing is stranger than what the gate cannot take"
