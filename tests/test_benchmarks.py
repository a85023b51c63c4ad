"""The promised numbers, each by the functions of its benchmark: trainings and measurements, minutes each."""

import shutil

import numpy as np
import pytest

from benchmarks import anomaly, codes, dciodvfy, denoising, predictor, segmentation, startup
from benchmarks.models import trained
from medae.backends.torch import keep_heap
from medae.objectives import SparseKL

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]


def test_tiles_are_exact_and_cost_little_beside_their_forward() -> None:
    keep_heap()
    for name, package in predictor.packages(None):
        found = predictor.measure(name, package, repeats=5)
        assert found.planned <= 1.35, found
        assert found.difference < 1e-3, found
        assert found.wall <= 1.10, found
        assert found.same_bits, found


@pytest.mark.parametrize(("steps", "least"), [(2000, 1.0), (6000, 1.5)])
def test_the_denoiser_beats_nlm_and_tv(steps: int, least: float) -> None:
    model = denoising.of_model(trained("demo/denoise-tissue", [f"training.steps={steps}"]))
    assert denoising.margin(denoising.compare({**denoising.tuned(), "medae": model})) >= least


@pytest.mark.parametrize("name", segmentation.CONFIGS)
def test_nuclei_are_found_on_clean_and_damaged_pictures(name: str) -> None:
    model = segmentation.of_model(trained(f"demo/{name}"))
    *simple, ours = segmentation.compare({**segmentation.thresholds(), name: model})
    assert ours.clean >= 0.88
    assert ours.damaged.mean() >= 0.80
    assert ours.damaged.mean() > max(each.damaged.mean() for each in simple)


def test_artefacts_are_detected() -> None:
    models = anomaly.over_seeds([0, 1, 2])
    for kind in anomaly.PROMISED:
        assert np.mean([model[kind]["medae"] for model in models]) >= 0.95, kind


def test_the_command_line_answers_at_once() -> None:
    (seconds,) = startup.fastest([[*startup.MEDAE, "--help"]], 10)
    assert seconds < 0.4
    assert not startup.loaded_by("import medae.predictor")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dicom_answers_have_no_error_of_their_own() -> None:
    for name, paths in dciodvfy.sources().items():
        assert not any(dciodvfy.new_errors(paths)[1].values()), name


def test_units_of_a_sparse_code_are_as_active_as_they_are_asked() -> None:
    steps, seeds = codes.STEPS["sparse"], (0, 1, 2)
    asked = [SparseKL(rho=codes.RHO, weight=2.0)]
    found = [codes.sparse(asked, "sigmoid", steps=steps, seed=seed) for seed in seeds]
    assert np.mean([each["mean activation"] for each in found]) == pytest.approx(codes.RHO, rel=0.2)
    assert np.mean([each["units within 3 rho"] for each in found]) > 0.95


def test_the_alarm_of_a_collapsed_code() -> None:
    for seed in (0, 1, 2):
        assert not codes.priced(seed, 1.0, codes.STEPS["vae"])["alarm"]
        assert codes.priced(seed, 100.0, codes.STEPS["vae"])["alarm"]


def test_categorical_needs_no_more_bits_than_gaussian() -> None:
    """Of fixed and of learned variance; the optimal one, which is taken from the test images, needs fewer."""
    steps = codes.STEPS["bits"]
    found = {
        name: np.mean([codes.bits(*decoder, steps=steps, seed=seed) for seed in (0, 1, 2)])
        for name, decoder in codes.DECODERS.items()
    }
    assert found["categorical"] <= min(found["gaussian, variance .01"], found["gaussian, learned"]), found
