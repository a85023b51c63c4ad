"""Embedded images are what they say, their splits are disjoint, and artefacts are seen and repeatable."""

import subprocess
import sys

import numpy as np
import pytest

from medae.data import SPLITS, Case, Sample, artefacts, samples
from medae.errors import SettingsError
from medae.preparation import Percentile, Preparation


def rgb(image) -> np.ndarray:
    return np.moveaxis(image.pixels[:, 0], 0, 2)


def test_settings_load_neither_torch_nor_images():
    code = (
        "import sys, medae.data\n"
        "medae.data.Sample(name='nuclei')\n"
        "medae.data.AugmentSettings(stain={}, affine={})\n"
        "print({'torch', 'monai', 'skimage', 'scipy', 'nibabel', 'pydicom'} & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_images_are_what_they_say():
    assert samples.stained_tissue().pixels.shape == (3, 1, 512, 512)
    assert samples.retina().pixels.shape == (3, 1, 1411, 1411)
    assert samples.stained_tissue().pixels.dtype == np.uint8


def test_the_dicom_files_are_there_and_read():
    from medae.io import read_image

    assert read_image(samples.ct_slice_file()).pixels.shape == (1, 1, 128, 128)
    assert read_image(samples.mr_slice_file()).pixels.shape == (1, 1, 64, 64)
    series = read_image(samples.ct_series_folder())
    assert series.pixels.shape == (1, 5, 16, 16)
    assert series.geometry.spacing_mm[0] == pytest.approx(2.5)
    assert [read_image(file).pixels.shape for file in samples.mr_projection_files()] == [(1, 1, 16, 16)] * 7


def test_the_oblique_volume_is_oblique_and_still_rigid():
    geometry = samples.oblique_volume().geometry
    assert geometry.shape == (25, 41, 33)
    directions = geometry.affine[:3, :3] / geometry.spacing
    assert (np.abs(directions).max(axis=0) < 0.999).all(), "no axis is straight"
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_every_set_has_every_split_and_unique_cases(name):
    data = Sample(name=name)
    assert all(data.cases(split) for split in SPLITS)
    ids = [case.id for case in data.all_cases()]
    assert len(set(ids)) == len(ids)
    for split in SPLITS:
        for loaded in data.load(split):
            assert loaded.case.split == split
            assert loaded.image.pixels.size
    assert data.licence
    assert Sample.model_validate({"kind": "sample", "name": name}) == data


def test_parts_of_the_tissue_are_disjoint_pieces_of_it():
    tissue = samples.stained_tissue()
    rows = set()
    for split in SPLITS:
        for loaded in Sample(name="denoise-tissue").load(split):
            _, top, left = tissue.geometry.index(loaded.image.geometry.world((0, 0, 0))).round().astype(int)
            height = loaded.image.geometry.shape[1]
            assert left == 0
            assert not rows & set(range(top, top + height))
            rows |= set(range(top, top + height))
            np.testing.assert_array_equal(loaded.image.pixels, tissue.pixels[:, :, top : top + height])


@pytest.mark.parametrize("name", ["ct", "mr"])
def test_parts_of_a_slice_make_the_slice(name):
    from medae.io import read_image

    whole = read_image({"ct": samples.ct_slice_file, "mr": samples.mr_slice_file}[name]())
    data = Sample(name="denoise-grey")
    parts = [data.read(Case(id=f"{name}-{split}", image=None)).image for split in SPLITS]
    np.testing.assert_array_equal(np.concatenate([part.pixels for part in parts], axis=3), whole.pixels)
    beside = parts[2].geometry.world((0, 0, 0)) - whole.geometry.world((0, 0, whole.geometry.shape[2] * 6 // 8))
    np.testing.assert_allclose(beside, 0, atol=1e-9)


def test_parts_of_the_volume_are_disjoint_slices_of_it():
    whole, data = samples.oblique_volume(), Sample(name="denoise-grey")
    seen = set()
    for split in SPLITS:
        part = data.read(Case(id=f"mr-volume-{split}", image=None)).image
        first = round(float(whole.geometry.index(part.geometry.world((0, 0, 0)))[0]))
        numbers = set(range(first, first + part.geometry.shape[0]))
        assert not numbers & seen
        seen |= numbers
        np.testing.assert_array_equal(part.pixels, whole.pixels[:, sorted(numbers)])


def test_grey_parts_can_be_prepared():
    for split in SPLITS:
        for loaded in Sample(name="denoise-grey").load(split):
            prepared = Preparation(intensity=Percentile()).apply(loaded.image).image.pixels
            assert prepared.min() == 0
            assert prepared.max() == 1
            assert prepared.std() > 0.05


def test_nuclei_are_blue_and_a_third_of_the_tissue_at_most():
    for split in SPLITS:
        (loaded,) = Sample(name="nuclei").load(split, labels=1)
        labels = loaded.target.pixels[0, 0].astype(bool)
        assert loaded.target.geometry is not None
        loaded.image.geometry.require_same_grid(loaded.target.geometry)
        assert 0.15 < labels.mean() < 0.4
        blueness = rgb(loaded.image)[..., 2].astype(float) - rgb(loaded.image)[..., 0]
        assert blueness[labels].mean() > blueness[~labels].mean() + 15


def test_anomaly_tiles_are_disjoint_and_only_the_test_knows_abnormal_ones():
    data = Sample(name="anomaly-tiles")
    places: dict[str, set[str]] = {}
    for split in SPLITS:
        cases = data.cases(split)
        labels = [case.label for case in cases]
        expected = {"normal", *samples.ABNORMAL} if split == "test" else {"normal"}
        assert set(labels) == expected
        assert len({labels.count(label) for label in expected}) == 1
        places[split] = {case.id.rpartition("-")[0] for case in cases}
    assert not places["train"] & places["validation"]
    assert not (places["train"] | places["validation"]) & places["test"]
    assert min(len(names) for names in places.values()) >= 100


def test_making_a_set_again_gives_the_same():
    first, again = (list(samples.SAMPLES["anomaly-tiles"].make()) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.case == other.case
        np.testing.assert_array_equal(one.image.pixels, other.image.pixels)


def test_artefacts_change_a_part_of_the_tile_or_its_sharpness():
    data = Sample(name="anomaly-tiles")
    by_name = {case.id: case for case in data.cases("test")}
    tiles = {case.id: rgb(data.read(case).image).astype(float) for case in data.cases("test")}
    for name, tile in tiles.items():
        place, _, label = name.rpartition("-")
        normal = tiles[f"{place}-normal"]
        changed = (np.abs(tile - normal).max(axis=2) > 4).mean()
        if label in ("ink", "foreign"):
            assert 0.1 < changed < 0.75, name
            assert 0.1 < samples.Sample(name="anomaly-tiles").read(by_name[name]).target.pixels.mean() < 0.75
        elif label == "fold":
            assert 0.05 < changed < 0.75, name
            assert tile.mean() < normal.mean()
        elif label == "bubble":
            assert 0.05 < changed < 0.8, name
        elif label == "blur":
            assert np.abs(np.diff(tile, axis=0)).mean() < 0.7 * np.abs(np.diff(normal, axis=0)).mean()


@pytest.mark.parametrize(
    "artefact",
    [
        artefacts.ink,
        artefacts.fold,
        artefacts.blur,
        artefacts.bubble,
        artefacts.compressed,
        artefacts.stain_shift,
    ],
)
def test_an_artefact_follows_from_its_seed(artefact):
    tile = rgb(samples.stained_tissue())[:40, :33]
    before = tile.copy()
    one, again, other = (artefact(tile, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == tile.shape
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(tile, before)


def test_an_unknown_case_is_refused():
    with pytest.raises(SettingsError, match="no case x"):
        Sample(name="nuclei").read(Case(id="x", image=None))
