"""Calibration: percentiles, p-values and thresholds keep their promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, percentileofscore

from medae.calibration import Calibration
from medae.errors import UsageError

scores = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=10, max_size=60)


def made(reference: list[float]) -> Calibration:
    return Calibration.from_scores(reference, score="l2_mean", package_digest="sha256:0")


@given(scores, st.floats(-0.5, 1.5))
def test_percentile_is_scipys(reference: list[float], score: float) -> None:
    assert made(reference).percentile(score) == pytest.approx(percentileofscore(reference, score, kind="mean"))


@given(scores, st.floats(-0.5, 1.5), st.floats(0.12, 0.9))
def test_a_score_is_beyond_the_threshold_exactly_when_its_p_value_is_small(
    reference: list[float], score: float, rate: float
) -> None:
    calibration = made(reference)
    assert (score > calibration.threshold(rate)) == (calibration.p_value(score) <= rate)


def test_false_alarms_come_at_the_promised_rate() -> None:
    rng = np.random.default_rng(0)
    rates = [
        np.mean([calibration.p_value(score) <= 0.05 for score in rng.normal(size=500)])
        for calibration in (made(list(rng.normal(size=199))) for _ in range(60))
    ]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.01)
    low, high = beta.ppf([0.001, 0.999], 10, 190)  # of the true rate; 500 draws widen it a little
    assert low - 0.03 < min(rates) and max(rates) < high + 0.03


def test_what_the_references_cannot_tell_is_refused() -> None:
    calibration = made(list(np.linspace(0, 1, 19)))
    assert calibration.threshold(0.05) == 1
    with pytest.raises(UsageError, match=r"lowest is 0\.05"):
        calibration.threshold(0.04)
    for rate in (0.0, 1.0, -1.0):
        with pytest.raises(UsageError, match="between 0 and 1"):
            calibration.threshold(rate)
    with pytest.raises(UsageError, match="too few"):
        made([0.1] * 9)


def test_references_must_be_sorted() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Calibration(package_digest="", score="s", reference=(2.0, 1.0, *[3.0] * 10))


def test_a_rate_next_to_one_calls_all_but_the_lowest_anomalous() -> None:
    calibration = Calibration.from_scores(range(1, 21), score="x", package_digest="sha256:0")
    assert calibration.threshold(1 - 1e-12) == 1
