"""Uncertainty: laws of the disagreement, and that asking for it never changes the answer."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medae.errors import UsageError
from medae.image import Image
from medae.metrics.selection import risk_coverage
from medae.predictor import Predictor
from medae.tasks import Segmentation
from medae.uncertainty import RepeatedPredictor, deviation, disagreement
from tests.conftest import untrained_package
from tests.service_parts import LABELS, OWN_RANGE, SEGNET, denoiser, named, scorer, segmenter

labels = arrays.arrays(np.uint8, (1, 2, 5, 4), elements=st.integers(0, 2))
answers = st.lists(labels, min_size=2, max_size=4)


@given(answers)
def test_disagreement_is_that_of_the_pairs_in_any_order(given_answers) -> None:
    value = disagreement(given_answers)
    assert 0 <= value <= 1
    assert value == pytest.approx(disagreement(given_answers[::-1]))
    assert value == pytest.approx(np.mean([disagreement(pair) for pair in combinations(given_answers, 2)]))


@given(labels)
def test_who_says_the_same_agrees(answer) -> None:
    assert disagreement([answer, answer.copy()]) == 0
    assert disagreement([answer, np.zeros_like(answer)]) == (1 if answer.any() else 0)


def test_soft_dice_costs_no_answer_and_leaves_no_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated, image = RepeatedPredictor(segmenter(), ["soft_dice"]), picture()
    monkeypatch.setattr(repeated, "_again", None)
    threshold = halving(repeated, image)
    prediction = repeated(image, threshold=threshold)
    assert 0 < prediction.scores["uncertainty_soft_dice"] < 1 and prediction.probabilities is None
    asked = repeated(image, threshold=threshold, probabilities=True)
    assert asked.probabilities is not None and asked.scores == prediction.scores


@settings(deadline=None)  # the first call imports MONAI
@given(labels, labels)
def test_dice_is_monais(one, other) -> None:
    import torch
    from monai.metrics import DiceMetric

    there = [label for label in (1, 2) if (one == label).any() or (other == label).any()]
    if not there:
        return
    stacks = [torch.from_numpy(np.stack([answer[0] == label for label in there])[None]) for answer in (one, other)]
    expected = 1 - DiceMetric(ignore_empty=False)(*stacks).mean().item()
    assert disagreement([one, other]) == pytest.approx(expected, abs=1e-6)


def test_deviation_is_numpys() -> None:
    images = np.random.default_rng(0).normal(size=(5, 1, 2, 6, 7))
    assert deviation(list(images)) == pytest.approx(np.sqrt(np.mean(images.var(0))))


def picture(rows: int = 45, columns: int = 38) -> Image:
    return Image.from_picture(np.random.default_rng(1).integers(0, 256, (rows, columns), np.uint8))


def halving(predictor: Predictor, image: Image) -> float | None:
    """The threshold at which an untrained segmenter finds something in half of the image."""
    if predictor.package.card.task.kind != "segmentation":
        return None
    soft = predictor(image, probabilities=True).probabilities
    assert soft is not None
    return float(np.median(soft.pixels))


def dropping(name: str = "dropping"):
    return named(untrained_package(Segmentation(labels=LABELS), SEGNET | {"dropout": 0.5}, OWN_RANGE), name)


@pytest.mark.parametrize("package", [segmenter(), denoiser()], ids=["segment", "restore"])
def test_the_answer_is_the_same_with_and_without(package) -> None:
    plain, repeated = Predictor(package), RepeatedPredictor(package, ["flips", "ensemble"], members=[package])
    image = picture()
    threshold = halving(plain, image)
    one, other = plain(image, threshold=threshold), repeated(image, threshold=threshold)
    assert np.array_equal(one.image.pixels, other.image.pixels)
    assert other.scores["uncertainty_ensemble"] == 0, "a model agrees with itself"
    assert other.scores["uncertainty_flips"] > 0
    assert {name: other.scores[name] for name in one.scores} == one.scores


def test_mirror_images_are_equally_uncertain() -> None:
    repeated = RepeatedPredictor(segmenter(), ["flips"])
    image = picture(40, 36)  # multiples of the stride: the padded end is the same on both sides
    threshold = halving(repeated, image)
    turned = image.with_pixels(image.pixels[..., ::-1])
    values = [repeated(each, threshold=threshold).scores["uncertainty_flips"] for each in (image, turned)]
    assert values[0] > 0 and values[0] == pytest.approx(values[1])


def test_dropout_draws_and_draws_again_the_same() -> None:
    repeated, image = RepeatedPredictor(dropping(), ["dropout"]), picture()
    threshold = halving(repeated, image)
    first = repeated(image, threshold=threshold).scores["uncertainty_dropout"]
    assert first > 0
    assert repeated(image, threshold=threshold).scores["uncertainty_dropout"] == first
    assert np.array_equal(repeated(image).image.pixels, Predictor(dropping())(image).image.pixels)


@pytest.mark.parametrize(
    ("package", "ways", "members", "words"),
    [
        (scorer(), ["flips"], [], "says itself how unusual"),
        (segmenter(), ["dropout"], [], "trained without dropout"),
        (denoiser(), ["soft_dice"], [], "of labels and their probabilities"),
        (segmenter(), ["ensemble"], [], "needs other models"),
        (segmenter(), ["flips"], [segmenter()], "needs other models"),
        (segmenter(), ["ensemble"], [denoiser()], "answers another question"),
        (segmenter(), ["guess"], [], "not known; by soft_dice, flips, dropout, ensemble"),
    ],
)
def test_what_cannot_be_repeated_is_refused(package, ways, members, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RepeatedPredictor(package, ways, members=members)


numbers = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=30)


@given(numbers)
def test_risk_at_full_coverage_is_the_mean_and_order_does_not_matter(cases) -> None:
    doubt, risk = np.array(cases).T
    curve = risk_coverage(doubt, risk)
    assert curve.risk[-1] == pytest.approx(risk.mean()) and curve.coverage[-1] == 1
    order = np.random.default_rng(0).permutation(len(risk))
    assert risk_coverage(doubt[order], risk[order]).area == pytest.approx(curve.area)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_best_doubt_is_the_risk_itself_and_none_says_the_mean(risks) -> None:
    risk = np.array(risks)
    best, worst = risk_coverage(risk, risk).area, risk_coverage(-risk, risk).area
    none = risk_coverage(np.zeros_like(risk), risk).area
    assert best <= none + 1e-12 and none <= worst + 1e-12
    assert none == pytest.approx(risk.mean())


@pytest.mark.parametrize(("doubt", "risk"), [([], []), ([1], [1, 2]), ([np.nan], [1])])
def test_a_curve_needs_numbers(doubt, risk) -> None:
    with pytest.raises(ValueError):
        risk_coverage(doubt, risk)
