"""Calibration: percentiles, p-values and thresholds keep their promise."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import beta, betabinom, false_discovery_control, percentileofscore

from medae.calibration import FEWEST_REFERENCES, Calibration, References, benjamini_hochberg
from medae.errors import UsageError

values = st.floats(0, 1, allow_subnormal=False)
samples = st.lists(values, min_size=FEWEST_REFERENCES, max_size=160)
RATES = (0.01, 0.05, 0.1, 0.2)


def p_values(
    references: NDArray[np.float64], scores: NDArray[np.float64], two_sided: bool = False
) -> NDArray[np.float64]:
    """Row by row, by counting: what References.p_value says (a test says so), for thousands of draws at once."""
    count = references.shape[1]
    high = (1 + (references >= scores[:, None]).sum(1)) / (count + 1)
    low = (1 + (references <= scores[:, None]).sum(1)) / (count + 1)
    return np.minimum(1, 2 * np.minimum(low, high)) if two_sided else high


@given(samples, st.floats(-0.5, 1.5))
def test_percentile_is_scipys(reference: list[float], score: float) -> None:
    assert References.of(reference).percentile(score) == pytest.approx(percentileofscore(reference, score, kind="mean"))


@given(samples, st.floats(-0.5, 1.5), st.booleans())
def test_p_values_count_the_references_beyond(reference: list[float], score: float, two_sided: bool) -> None:
    counted = p_values(np.array([reference]), np.array([score]), two_sided)[0]
    assert References.of(reference, two_sided=two_sided).p_value(score) == pytest.approx(counted)


@given(samples, st.floats(-0.5, 1.5), st.floats(0.03, 0.9), st.booleans())
def test_a_score_is_unusual_exactly_when_its_p_value_is_small(
    reference: list[float], score: float, rate: float, two_sided: bool
) -> None:
    references = References.of(reference, two_sided=two_sided)
    low, high = references.usual(rate)
    assert (score > high or score < low) == (references.p_value(score) <= rate)


@given(samples, values, values)
def test_what_is_less_like_the_references_has_no_higher_p_value(reference: list[float], one: float, two: float) -> None:
    references = References.of(reference, two_sided=True)
    median = float(np.median(reference))
    near, far = sorted((median + abs(one), median + abs(one) + abs(two)))
    assert references.unlikeness(far) >= references.unlikeness(near)
    assert references.p_value(far) <= references.p_value(near)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("count", [100, 300, 1000])
def test_the_true_rate_of_false_alarms_lies_in_the_promised_band(count: int, two_sided: bool) -> None:
    rng, inside = np.random.default_rng(count), 0
    for _ in range(200):
        references = References.of(rng.normal(size=count), two_sided=two_sided)
        low, high = references.usual(0.05)
        scores = rng.normal(size=2000)
        alarms = int(((scores > high) | (scores < low)).sum())
        inside += _within(alarms, 2000, *_gaps(references, count))
    assert inside >= 0.96 * 200


def _gaps(references: References, count: int) -> tuple[float, float]:
    """The Beta of the true rate: of so many of the n + 1 gaps between references."""
    a = 2 * int(0.025 * (count + 1)) if references.two_sided else int(0.05 * (count + 1))
    assert references.band(0.05, probability=0.99) == pytest.approx(beta.ppf([0.005, 0.995], a, count + 1 - a))
    return a, count + 1 - a


def _within(alarms: int, of: int, a: float, b: float) -> bool:
    low, high = betabinom.ppf([0.005, 0.995], of, a, b)
    return bool(low <= alarms <= high)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("draw", ["normal", "counts"])
def test_p_values_of_normal_images_are_super_uniform(draw: str, two_sided: bool) -> None:
    rng, draws = np.random.default_rng(1), 2000
    drawn = rng.normal(size=(draws, 151)) if draw == "normal" else rng.poisson(3, (draws, 151)).astype(float)
    p = p_values(drawn[:, 1:], drawn[:, 0], two_sided)
    for rate in RATES:
        assert (p <= rate).mean() <= rate + 3 * np.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize("rate", RATES)
def test_false_discoveries_among_a_set_stay_at_the_promised_share(rate: float) -> None:
    """200 images of which 30 are abnormal, scored against one calibration each time."""
    rng, repeats, shares = np.random.default_rng(2), 500, []
    abnormal = np.arange(200) < 30
    for _ in range(repeats):
        references, scores = rng.normal(size=300), rng.normal(size=200) + 3 * abnormal
        above = 300 - np.searchsorted(np.sort(references), scores, side="left")
        found = benjamini_hochberg((1 + above) / 301) <= rate
        shares.append((found & ~abnormal).sum() / max(found.sum(), 1))
    assert np.mean(shares) <= rate + 3 * np.std(shares) / np.sqrt(repeats)


@given(st.lists(values, max_size=40))
def test_q_values_are_scipys(p: list[float]) -> None:
    expected = false_discovery_control(p) if p else []
    np.testing.assert_allclose(benjamini_hochberg(p), expected)


@pytest.mark.parametrize("p", [[0.1, float("nan")], [1.1], [-0.1], [[0.1]]])
def test_what_is_no_p_value_is_refused(p: list[float]) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        benjamini_hochberg(p)


def test_what_the_references_cannot_tell_is_refused() -> None:
    reference = np.linspace(0, 1, 199).tolist()
    assert References.of(reference).usual(0.005).high == 1
    for references, least in ((References.of(reference), "0.005"), (References.of(reference, two_sided=True), "0.01")):
        with pytest.raises(UsageError, match=f"lowest is {least}"):
            references.usual(0.004)
        for rate in (0.0, 1.0, -1.0):
            with pytest.raises(UsageError, match="between 0 and 1"):
                references.usual(rate)
        assert 0 < references.band(1 - 1e-12).high <= 1
    assert References.of(reference).usual(1 - 1e-12).high == 0


def test_few_references_are_warned_of_and_too_few_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match="99 reference images are too few"):
        References.of([0.1] * 99)
    with caplog.at_level(logging.WARNING):
        Calibration.from_scores({"l2_mean": [0.1] * 500}, package_digest="d")
        assert not caplog.text
        Calibration.from_scores({"l2_mean": [0.1] * 100}, package_digest="d")
    assert "may in truth be 2.0 to 8.9%" in caplog.text


def test_references_must_be_sorted_and_be_those_of_the_score() -> None:
    with pytest.raises(ValueError, match="ascending"):
        References(values=(2.0, 1.0, *[3.0] * 100))
    references = {"l2_mean": References.of([0.5] * 100)}
    with pytest.raises(ValueError, match="no references of the score l1_mean"):
        Calibration(package_digest="", score="l1_mean", references=references)


def test_a_calibration_of_format_1_is_read() -> None:
    reference = np.linspace(0, 1, 120).tolist()
    old = {"format": 1, "version": "1", "package_digest": "d", "score": "l2_mean", "reference": reference}
    assert Calibration.model_validate(old) == Calibration.from_scores({"l2_mean": reference}, package_digest="d")


@pytest.mark.parametrize("two_sided", [False, True])
def test_what_is_no_number_is_neither_usual_nor_a_reference(two_sided: bool) -> None:
    references = References.of(list(range(100)), two_sided=two_sided)
    for place in (references.p_value, references.percentile):
        with pytest.raises(UsageError, match="no place among references"):
            place(float("nan"))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite number"):
            References.of([*range(100), wrong])
