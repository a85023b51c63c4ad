"""Packages: what is loaded is what was saved, and nothing that was changed is loaded."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from medae.calibration import Calibration
from medae.errors import OutputError, PackageError, UnknownModel
from medae.io.answer import Label
from medae.package import ModelPackage, load
from medae.preparation import Preparation, ZScore
from medae.tasks import Anomaly, Restoration, Segmentation
from tests.conftest import untrained_package

SMALL = {"kind": "dncnn", "depth": 3, "features": 4}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    untrained_package(Restoration(), SMALL).save(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(saved: Path) -> None:
    package, again = untrained_package(Restoration(), SMALL), ModelPackage.load(saved)
    assert again.card == package.card and again.digest == package.digest
    assert set(again.weights) == set(package.weights)
    for name, value in package.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)
        assert again.weights[name].dtype == value.dtype


def test_the_digest_is_that_of_the_file_and_holds_the_weights(saved: Path) -> None:
    digest = hashlib.sha256((saved / "card.json").read_bytes()).hexdigest()
    assert load(saved).digest == f"sha256:{digest}"
    weights = hashlib.sha256((saved / "weights.safetensors").read_bytes()).hexdigest()
    assert load(saved).card.weights_sha256 == weights
    assert untrained_package(Restoration(), SMALL, seed=1).digest != load(saved).digest


def test_saving_again_keeps_the_digest_even_of_a_card_in_other_words(saved: Path) -> None:
    card = json.loads((saved / "card.json").read_text())
    del card["limits"]  # a field that an older medae did not write
    (saved / "card.json").write_text(json.dumps(card))
    package = load(saved)
    package.save(saved)
    assert load(saved).digest == package.digest


@pytest.mark.parametrize("at", [10, 200, -1])
def test_a_changed_byte_is_noticed(saved: Path, at: int) -> None:
    data = bytearray((saved / "weights.safetensors").read_bytes())
    data[at] ^= 1
    (saved / "weights.safetensors").write_bytes(data)
    with pytest.raises(PackageError, match="damaged or was changed"):
        load(saved)


def edit(card: Path, **changes: object) -> None:
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


def test_a_newer_format_is_named(saved: Path) -> None:
    edit(saved / "card.json", format=3)
    with pytest.raises(PackageError, match="format 3 is newer"):
        load(saved)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "not complete"),
        (lambda folder: (folder / "card.json").write_text("{"), "not valid JSON"),
        (lambda folder: edit(folder / "card.json", channels_in="many"), "channels_in"),
        (lambda folder: edit(folder / "card.json", surprise=1), "surprise"),
        (lambda folder: edit(folder / "card.json", network={"kind": "unheard"}), "damaged|not known"),
    ],
)
def test_what_is_broken_is_named(saved: Path, break_it: object, said: str) -> None:
    from medae.predictor import Predictor

    break_it(saved)  # type: ignore[operator]
    with pytest.raises(PackageError, match=said):
        Predictor(load(saved))


def test_weights_of_another_network_are_refused() -> None:
    from medae.backends.torch import TorchBackend

    package = untrained_package(Restoration(), SMALL)
    other = untrained_package(Restoration(), SMALL | {"features": 5})
    with pytest.raises(PackageError, match="do not fit"):
        TorchBackend.from_package(ModelPackage(package.card, other.weights, package.card_json))


def test_no_package_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UnknownModel):
            load(place)


def test_a_calibration_belongs_to_one_package(saved: Path) -> None:
    package = untrained_package(Anomaly(), {"kind": "vae", "features": [4, 4]})
    own = Calibration.from_scores({"l2_mean": np.linspace(0, 1, 500).tolist()}, package_digest=package.digest)
    package.calibrated(own).save(saved)
    assert load(saved).calibration == own
    other = own.model_copy(update={"package_digest": "sha256:1"})
    (saved / "calibration.json").write_text(other.model_dump_json())
    with pytest.raises(PackageError, match="another package"):
        load(saved)


def test_a_full_disk_leaves_the_old_package_and_no_rest(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(saved).digest

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space"):
        untrained_package(Restoration(), SMALL, seed=3).save(saved)
    assert load(saved).digest == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Not a directory"):
        untrained_package(Restoration(), SMALL).save(tmp_path / "file" / "model")
    with pytest.raises(OutputError, match="a file is there"):
        untrained_package(Restoration(), SMALL).save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="something else"):
        untrained_package(Restoration(), SMALL).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    untrained_package(Restoration(), SMALL).save(tmp_path / "empty")
    assert load(tmp_path / "empty").card.name == "untrained"


def test_a_link_goes_on_leading_to_the_package(saved: Path) -> None:
    link = saved.parent / "current"
    link.symlink_to(saved)
    newer = untrained_package(Restoration(), SMALL, seed=3)
    newer.save(str(link))
    assert link.is_symlink() and load(saved).digest == newer.digest
    assert sorted(path.name for path in saved.parent.iterdir()) == ["current", "model"]


def test_the_model_card_says_what_the_model_takes_and_gives(tmp_path: Path) -> None:
    task = Segmentation(labels=(Label(name="liver", colour=(1, 2, 3)), Label(name="lesion", colour=(4, 5, 6))))
    preparation = Preparation(spacing_mm=(3, 1.5, 1.5), intensity=ZScore())
    untrained_package(task, {"kind": "unet", "dims": 3, "features": [4, 6], "strides": [2]}, preparation).save(
        tmp_path / "model"
    )
    text = (tmp_path / "model" / "README.md").read_text()
    assert "1 liver, 2 lesion" in text
    assert "grey volumes of known voxel size, seen at 3 x 1.5 x 1.5 mm; intensities by zscore" in text
