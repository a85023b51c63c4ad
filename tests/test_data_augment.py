"""Augmentation moves image and target alike, leaves labels whole, and follows from its generator."""

import numpy as np
import pytest
from pydantic import ValidationError

from medae.data import augment
from medae.data.augment import Affine, AugmentSettings, Blur, Colour, Intensity, Invert, Noise, Pair, Stain
from medae.errors import SettingsError

EVERYTHING = AugmentSettings(
    flip=("rows", "columns"),
    rot90=True,
    affine=Affine(probability=1),
    stain=Stain(probability=1),
    colour=Colour(probability=1),
    invert=Invert(probability=1),
    intensity=Intensity(probability=1),
    blur=Blur(probability=1),
    noise=Noise(probability=1),
)
VALUES_ONLY = EVERYTHING.model_copy(update={"flip": (), "rot90": False, "affine": None})
SHAPES = [(3, 24, 31), (3, 32, 32), (3, 7, 24, 31)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def sample(shape=(3, 24, 31), seed=0) -> Pair:
    random = np.random.default_rng(seed)
    image = random.random(shape, dtype=np.float32)
    return Pair(image, random.integers(0, 4, (1, *shape[1:]), dtype=np.int16))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_type_and_labels_are_kept(shape):
    before = sample(shape)
    copy = before.image.copy()
    for seed in range(5):
        after = EVERYTHING(before, rng(seed))
        assert after.image.shape == shape
        assert after.image.dtype == np.float32
        assert after.target.shape == before.target.shape
        assert after.target.dtype == np.int16
        assert set(np.unique(after.target)) <= {0, 1, 2, 3}
        assert np.isfinite(after.image).all()
        assert not np.array_equal(after.image, before.image)
    assert np.array_equal(before.image, copy)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_generator_decides_everything(shape):
    one, again, other = (EVERYTHING(sample(shape), rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.target, again.target)
    assert not np.array_equal(one.image, other.image)


def test_nothing_happens_unless_asked():
    before = sample()
    after = AugmentSettings()(before, rng())
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_array_equal(after.target, before.target)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_what_moves_moves_image_and_labels_alike(shape, seed):
    settings = AugmentSettings(
        flip=("slices", "rows", "columns")[4 - len(shape) :], rot90=True, affine=Affine(probability=1)
    )
    # blocks, so that bilinear values are whole inside them
    rows, columns = shape[-2:]
    blocks = (np.arange(rows)[:, None] // 8 + 3 * (np.arange(columns) // 8)) % 5
    labels = np.broadcast_to(blocks, (1, *shape[1:])).astype(np.uint8)
    after = settings(Pair(labels.astype(np.float32), labels), rng(seed))
    whole = np.abs(after.image - np.rint(after.image)) < 1e-4
    assert whole.mean() > 0.4
    agree = np.rint(after.image)[whole] == after.target[whole]
    assert agree.mean() > 0.99


@pytest.mark.parametrize("seed", range(4))
def test_flips_and_turns_are_exact_and_slices_stay_in_order(seed):
    volume = np.arange(3 * 8 * 8, dtype=np.float32).reshape(1, 3, 8, 8)
    after = AugmentSettings(flip=("rows", "columns"), rot90=True)(Pair(volume, volume.copy()), rng(seed))
    np.testing.assert_array_equal(after.image, after.target)
    assert sorted(after.image.ravel()) == list(range(192))
    for index in range(3):
        assert set(after.image[0, index].ravel()) == set(volume[0, index].ravel())


def test_all_eight_turns_come_about():
    picture = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    settings = AugmentSettings(flip=("columns",), rot90=True)
    assert len({settings(Pair(picture, None), rng(seed)).image.tobytes() for seed in range(80)}) == 8


def test_a_picture_that_is_not_square_is_turned_by_180():
    picture = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    seen = {AugmentSettings(rot90=True)(Pair(picture, None), rng(seed)).image.tobytes() for seed in range(20)}
    assert seen == {picture.tobytes(), picture[:, ::-1, ::-1].tobytes()}


def test_the_affine_stays_in_the_plane():
    volume = np.broadcast_to(np.arange(5, dtype=np.float32)[None, :, None, None], (1, 5, 20, 20)).copy()
    after = AugmentSettings(affine=Affine(rotation_degrees=90, scale=0.4, probability=1))(Pair(volume, None), rng())
    np.testing.assert_allclose(after.image, volume, atol=1e-5)


def test_the_affine_turns_by_no_more_than_it_says():
    spot = np.zeros((1, 65, 65), np.float32)
    spot[0, 30:35, 50:55] = 1
    angles = []
    for seed in range(40):
        turned = Affine(rotation_degrees=20, scale=0.0).apply(Pair(spot, None), rng(seed)).image[0]
        row, column = (np.average(axis, weights=turned) - 32 for axis in np.mgrid[:65, :65])
        angles.append(np.degrees(np.arctan2(row, column)))
    assert max(np.abs(angles)) < 21
    assert min(angles) < -12
    assert max(angles) > 12


def test_values_change_on_the_image_only():
    before = sample()
    after = VALUES_ONLY(before, rng())
    np.testing.assert_array_equal(after.target, before.target)


def test_a_clean_target_changes_with_its_image_but_is_not_damaged():
    image = sample().image
    changed = VALUES_ONLY.model_copy(update={"blur": None, "noise": None})(Pair(image, image.copy()), rng())
    np.testing.assert_array_equal(changed.image, changed.target)
    assert not np.array_equal(changed.image, image)
    damaged = AugmentSettings(blur=Blur(probability=1), noise=Noise(probability=1))(Pair(image, image.copy()), rng())
    np.testing.assert_array_equal(damaged.target, image)
    assert not np.array_equal(damaged.image, image)


def test_stain_jitter_is_made_of_stains_and_nearly_nothing_at_no_strength():
    from skimage.color import hed_from_rgb

    image = sample().image * 0.8 + 0.1
    nearly = Stain(strength=1e-9).apply(Pair(image, None), rng()).image
    np.testing.assert_allclose(nearly, image, atol=1e-4)
    slightly = Stain(strength=0.02).apply(Pair(image, None), rng()).image

    def amounts(light):
        return -np.log(light.reshape(3, -1).T.astype(float)) @ hed_from_rgb

    inside = (slightly > 0.01).all(0).ravel() & (slightly < 0.99).all(0).ravel()
    for stain in range(3):  # each amount is a straight line of what it was
        before, after = amounts(image)[inside, stain], amounts(slightly)[inside, stain]
        slope, offset = np.polyfit(before, after, 1)
        np.testing.assert_allclose(before * slope + offset, after, atol=1e-3)
        assert abs(slope - 1) < 0.021
        assert abs(offset) < 0.021


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_colour_jitter_leaves_greys_alone_and_turns_colours_by_no_more_than_it_says(shape):
    image = sample(shape).image
    settings = Colour(hue_degrees=25, saturation=0.4)
    for seed in range(20):
        made = settings.apply(Pair(image, None), rng(seed)).image
        assert made.dtype == np.float32
        np.testing.assert_allclose(made.mean(0), image.mean(0), atol=1e-6)
        before, after = (values - values.mean(0) for values in (image, made))
        lengths = np.linalg.norm(after, axis=0) / np.linalg.norm(before, axis=0)
        assert 0.6 - 1e-4 < lengths.min() <= lengths.max() < 1.4 + 1e-4
        np.testing.assert_allclose(lengths, lengths.mean(), rtol=1e-3)
        cosine = (before * after).sum(0) / (np.linalg.norm(before, axis=0) * np.linalg.norm(after, axis=0))
        assert (cosine > np.cos(np.radians(25.5))).all()


def test_a_third_of_a_turn_of_colours_passes_the_channels_on():
    image = sample().image
    turned = np.tensordot(augment._turn_of_colours(2 * np.pi / 3, 1.0), image, 1)
    np.testing.assert_allclose(turned, image[[2, 0, 1]], atol=1e-6)
    grey = np.tensordot(augment._turn_of_colours(1.0, 0.0), image, 1)
    np.testing.assert_allclose(grey, np.broadcast_to(image.mean(0), image.shape), atol=1e-6)


def test_inverted_twice_is_as_it_was():
    image = sample().image
    once = Invert().apply(Pair(image, None), rng()).image
    np.testing.assert_allclose(once + image, 1, atol=1e-6)
    np.testing.assert_allclose(Invert().apply(Pair(once, None), rng()).image, image, atol=1e-6)


def test_intensity_is_monotonous_and_within_its_settings():
    ramp = np.linspace(0, 1, 101, dtype=np.float32).reshape(1, 1, -1)
    for seed in range(30):
        made = Intensity(gain=0.2, offset=0.1, gamma=0.3).apply(Pair(ramp, None), rng(seed)).image.ravel()
        assert (np.diff(made) > 0).all()
        assert -0.1 <= made[0] <= 0.1
        assert 0.8 <= made[-1] - made[0] <= 1.2


def test_blur_and_noise_do_what_they_say():
    image = sample((1, 200, 200)).image
    blurred = [Blur(sigma=2).apply(Pair(image, None), rng(seed)).image for seed in range(10)]
    assert all(each.std() <= image.std() for each in blurred)
    assert min(each.std() for each in blurred) < image.std() / 3
    noise = [(Noise(level=0.1).apply(Pair(image, None), rng(seed)).image - image).std() for seed in range(30)]
    assert 0.08 < max(noise) < 0.101
    assert min(noise) < 0.03


def test_probability_is_a_share():
    image = sample((1, 8, 8)).image
    settings = AugmentSettings(noise=Noise(probability=0.3))
    changed = [not np.array_equal(settings(Pair(image, None), rng(seed)).image, image) for seed in range(400)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.07)


def test_what_cannot_be_done_is_said():
    with pytest.raises(SettingsError, match="1 channel"):
        AugmentSettings(stain=Stain(probability=1))(sample((1, 8, 8)), rng())
    with pytest.raises(SettingsError, match=r"colour jitter .* 1 channel"):
        AugmentSettings(colour=Colour(probability=1))(sample((1, 8, 8)), rng())
    with pytest.raises(SettingsError, match="slices"):
        AugmentSettings(flip=("slices",))(sample((1, 8, 8)), rng())


@pytest.mark.parametrize("bad", [{"flip": ["depth"]}, {"blur": {"sigma": 0}}, {"noise": {"probability": 0}}, {"x": 1}])
def test_settings_that_do_not_hold(bad):
    with pytest.raises(ValidationError):
        AugmentSettings.model_validate(bad)
