"""Public sets in their own layouts: splits that do not leak, and the floors that simple statistics reach on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medae.data import SPLITS, Collection
from medae.errors import SettingsError
from medae.evaluation import CaseResult
from medae.evaluation.detection import detection
from medae.scores.baselines import trivial_statistics


def png(path: Path, value: int = 0, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((side, side), value, np.uint8)).save(path)


def test_medianomaly_in_its_layout(tmp_path: Path) -> None:
    train, test = [f"t{n}.png" for n in range(40)], {"0": ["n.png"], "1": ["a.png"]}
    for name in (*train, "n.png", "a.png"):
        png(tmp_path / "images" / name)
    (tmp_path / "data.json").write_text(json.dumps({"train": {"0": train}, "test": test}))
    data = Collection(name="medianomaly", root=tmp_path, side=64)
    assert {case.label for case in data.cases("train")} == {"normal"} and data.cases("validation")
    assert [case.label for case in data.cases("test")] == ["normal", "abnormal"]
    assert data.read(data.cases("test")[0]).image.pixels.shape == (1, 1, 64, 64)


@pytest.mark.parametrize("nested", [False, True])
def test_bmad_in_its_layout(nested: bool, tmp_path: Path) -> None:
    below = "img/" if nested else ""
    for place in ("train/good/a", f"valid/good/{below}v", f"test/good/{below}b", f"test/Ungood/{below}c"):
        png(tmp_path / f"{place}.png", 30)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:9, 5:9] = 255
    (tmp_path / "test" / "Ungood" / "label").mkdir()
    Pillow.fromarray(mask).save(tmp_path / "test" / "Ungood" / "label" / "c.png")
    data = Collection(name="bmad", root=tmp_path, side=40)
    assert [len(data.cases(split)) for split in SPLITS] == [1, 1, 2]
    abnormal = data.read(data.cases("test")[1])
    assert abnormal.case.label == "abnormal" and abnormal.target is not None
    assert (abnormal.target.pixels > 0).sum() == 64


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="should hold the set bmad"):
        Collection(name="bmad", root=tmp_path / "x").all_cases()
    with pytest.raises(SettingsError, match="holds no pneumoniamnist"):
        Collection(name="pneumoniamnist", root=tmp_path).all_cases()


SHARED = {
    "pneumoniamnist": ("pneumoniamnist", 1214, 234),
    "crchistophenotypes": ("crchistophenotypes_27px", None, None),
    "kather2016": ("kather2016_colorectal_subset", None, None),
    "brain_mri": ("brain_mri_tumor_navoneel", None, None),
}


@pytest.mark.parametrize("name", SHARED)
def test_no_patient_is_in_two_splits(name: str, shared_data: Path) -> None:
    folder, train, test = SHARED[name]
    data = Collection(name=name, root=shared_data / folder, fold=2)  # type: ignore[arg-type]
    places = {split: {case.patient for case in data.cases(split)} - {None} for split in SPLITS}
    assert not (places["train"] | places["validation"]) & places["test"] and not places["train"] & places["validation"]
    normal = {split: [case for case in data.cases(split) if case.label == "normal"] for split in SPLITS}
    assert all(normal.values()) and len({case.id for case in data.all_cases()}) == len(data.all_cases())
    if train is not None:
        assert (len(normal["train"]), len(normal["test"])) == (train, test)
    assert data.read(data.cases("test")[0]).image.pixels.ndim == 4


def test_the_splits_are_those_of_the_floors(shared_data: Path) -> None:
    """What one statistic reaches on each test part was measured before, by others: the same images give the same."""
    for name, statistic, key, expected in (
        ("pneumoniamnist", "sharpness", "auroc_reversed", 0.905),
        ("pneumoniamnist", "intensity_std", "auroc_reversed", 0.826),
        ("crchistophenotypes", "red", "auroc_reversed", 0.771),
    ):
        data = Collection(name=name, root=shared_data / SHARED[name][0])  # type: ignore[arg-type]
        rows = [
            CaseResult(case.id, case.label, trivial_statistics(data.read(case).image.pixels) | {"x": 0.0})
            for case in data.cases("test")
        ]
        assert detection(["x"], rows)["all"][statistic][key] == pytest.approx(expected, abs=0.0015), name
