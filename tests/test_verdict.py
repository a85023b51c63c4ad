"""The gate's pure parts: verdicts by the caller's limits, checks of plain facts, and what a gate learns from."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medae.checks import Facts, InputChecks, facts_of
from medae.data import Case, Folder
from medae.data.corruption import GaussianNoise
from medae.data.seen import Seen, picture_of_labels
from medae.errors import SettingsError
from medae.image import Geometry, Image
from medae.preparation import Preparation, Window
from medae.verdict import DEGREES, GateLimits, Reason, Verdict
from tests.conftest import tilted_affine
from tests.training_toys import disc_pictures

rates = st.floats(0, 0.99)


@given(rates, rates, st.floats(0.001, 1))
def test_a_stricter_caller_never_gets_a_milder_verdict(one: float, other: float, p_value: float) -> None:
    low, high = sorted((one, other))
    mild, strict = GateLimits(review=high, reject=low), GateLimits(review=high, reject=high)
    reasons = [limits.reason(p_value, "the image") for limits in (mild, strict)]
    degrees = [DEGREES.index(reason.degree) if reason else 0 for reason in reasons]
    assert degrees[0] <= degrees[1]
    assert (degrees[1] == 2) == (p_value <= high)


def test_limits_of_zero_never_warn() -> None:
    assert GateLimits(review=0, reject=0).reason(1e-9, "the image") is None
    with pytest.raises(ValidationError, match=r"reject 0\.1 is above review 0\.05"):
        GateLimits(review=0.05, reject=0.1)


def test_the_worst_reason_decides_and_comes_first() -> None:
    verdict = Verdict.of([Reason("review", "b"), Reason("reject", "a")], 99.5)
    assert verdict == Verdict(verdict="reject", percentile=99.5, reasons=("a", "b"))
    assert Verdict.of([], None) == Verdict(verdict="ok")


def volume(spacing: tuple[float, float, float] = (3, 0.7, 0.7), shape=(8, 40, 48), seed: int = 0) -> Image:
    """A tilted volume of smoothed noise."""
    from scipy.ndimage import gaussian_filter

    pixels = gaussian_filter(np.random.default_rng(seed).normal(0, 500, shape), (0, 1, 1))
    affine = tilted_affine()
    affine[:3, :3] *= np.asarray(spacing) / np.linalg.norm(affine[:3, :3], axis=0)
    return Image(pixels[None].astype(np.float32), Geometry(shape, affine))


def facts(image: Image, dims: int = 3) -> Facts:
    return facts_of(Preparation(intensity=Window(lower=-1000, upper=1000)).apply(image), dims)


LEARNT = InputChecks.learn([facts(volume(seed=seed)) for seed in range(6)], 3)


def test_training_images_pass_their_own_checks() -> None:
    assert not [reason for seed in range(6) for reason in LEARNT(facts(volume(seed=seed)))]
    assert InputChecks.model_validate_json(LEARNT.model_dump_json()) == LEARNT


@pytest.mark.parametrize(
    ("image", "degree", "words"),
    [
        (volume(spacing=(3, 1.05, 0.7)), "review", "mm; the model knows"),
        (volume(spacing=(3, 0.2, 0.7)), "reject", "mm; the model knows"),
        (volume(shape=(8, 15, 48)), "review", "voxels on the model's grid"),
        (volume(shape=(8, 40, 300)), "reject", "voxels on the model's grid"),
        (volume().with_pixels(np.clip(volume().pixels, -50, 50)), "reject", "at an end of the image's range"),
    ],
)
def test_what_is_outside_is_said(image: Image, degree: str, words: str) -> None:
    found = LEARNT(facts(image))
    assert (degree, True) in [(reason.degree, words in reason.text) for reason in found]


def test_blur_and_noise_are_told_apart() -> None:
    from scipy.ndimage import gaussian_filter

    image = volume()
    blurred = image.with_pixels(gaussian_filter(image.pixels, (0, 0, 2, 2)))
    noisy = image.with_pixels(image.pixels + np.random.default_rng(1).normal(0, 600, image.pixels.shape))
    assert [reason.text for reason in LEARNT(facts(blurred)) if "blurred" in reason.text]
    assert [reason.text for reason in LEARNT(facts(noisy)) if "noisier" in reason.text]


def test_sharpness_knows_no_brightness_and_no_contrast() -> None:
    image = volume()
    changed = image.with_pixels(image.pixels * 0.2 + 77)
    assert facts(changed).sharpness == pytest.approx(facts(image).sharpness, abs=1e-3)


def test_another_modality_and_an_unknown_size() -> None:
    checks = LEARNT.model_copy(update={"modalities": ("MR",)})
    here = facts(volume())
    assert [reason.degree for reason in checks(here._replace(modality="CT"))] == ["reject"]
    assert not checks(here._replace(modality="MR")) and not checks(here), "who does not say is not accused"
    assert [reason.degree for reason in checks(here._replace(spacing_mm=None))] == ["review"]


def test_a_2d_network_does_not_look_along_slices() -> None:
    checks = InputChecks.learn([facts(volume(), dims=2)], 2)
    assert not checks(facts(volume(spacing=(9, 0.7, 0.7), shape=(3, 40, 400)), dims=2))


@pytest.mark.parametrize("count", [2, 9, 40])
def test_no_reference_was_learnt_from_and_the_test_cases_stay_out(tmp_path, count: int) -> None:
    data = Folder(root=disc_pictures(tmp_path, count), images="images/*.png", targets="masks/*.png")
    seen = Seen(of=data, references=10)
    ids = {split: {case.id for case in seen.cases(split)} for split in ("train", "validation", "test")}
    assert ids["test"] == {case.id for case in data.cases("test")}
    assert not ids["train"] & ids["validation"] and not ids["test"] & (ids["train"] | ids["validation"])
    known = len(ids["train"] | ids["validation"])
    assert len(ids["validation"]) == min(10, known // 2)
    assert seen.all_cases() == seen.all_cases()


def test_patients_are_not_divided(tmp_path) -> None:
    root = disc_pictures(tmp_path, 12)
    data = Folder(root=root, images="images/*.png", patient=r"disc-(\d)")
    seen = Seen(of=data, references=5)
    patients = [{case.patient for case in seen.cases(split)} for split in ("train", "validation")]
    assert not patients[0] & patients[1]


def test_half_of_what_a_denoiser_sees_is_noisy(tmp_path) -> None:
    data = Folder(root=disc_pictures(tmp_path, 30), images="images/*.png", validation=0.2, test=0)
    seen = Seen(of=data, corruption=GaussianNoise(level=0.1))
    changed = [
        not np.array_equal(seen.read(case).image.pixels, data.read(case).image.pixels) for case in seen.all_cases()
    ]
    assert 5 < sum(changed) < 25
    case = seen.all_cases()[0]
    assert np.array_equal(seen.read(case).image.pixels, seen.read(case).image.pixels), "a function of the case alone"


def test_masks_become_grey_levels(tmp_path) -> None:
    data = Folder(root=disc_pictures(tmp_path, 4), images="images/*.png", targets="masks/*.png")
    image = Seen(of=data, masks=1).read(data.all_cases()[0]).image
    assert sorted(np.unique(image.pixels)) == [0, 255] and image.pixels.dtype == np.uint8
    labels = Image(np.array([0, 1, 2, 3], np.uint8).reshape(1, 1, 2, 2), Geometry.picture(2, 2))
    assert picture_of_labels(labels, 3).pixels.ravel().tolist() == [0, 85, 170, 255]
    with pytest.raises(SettingsError, match="labels go up to 2"):
        picture_of_labels(labels, 2)


def test_masks_are_not_damaged(tmp_path) -> None:
    with pytest.raises(ValidationError, match="masks are not damaged"):
        Seen(of=Folder(root=tmp_path, images="*.png"), masks=1, corruption=GaussianNoise(level=0.1))


def test_the_order_of_references_follows_no_name() -> None:
    cases = [Case(id=f"case-{number:03d}", image=None) for number in range(50)]
    drawn = sorted(cases, key=lambda case: hashlib.sha256(case.id.encode()).hexdigest())
    assert [case.id for case in drawn] != [case.id for case in cases]
