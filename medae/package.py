"""ModelPackage: a trained model as data. A card, weights, a calibration; no code, no pickles; verified by digest."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from medae.calibration import Calibration
from medae.checks import InputChecks
from medae.errors import OutputError, PackageError, SettingsError, UnknownModel
from medae.io.answer import AnswerFile, write_files
from medae.metrics.doubt import Usual
from medae.preparation import Preparation
from medae.settings import Settings, SettingsT, validate_settings
from medae.tasks import Segmentation, TaskConfig
from medae.tiles import ReceptiveField

logger = logging.getLogger(__name__)

FORMAT = 2
WEIGHTS, PRIOR, CALIBRATION = "weights.safetensors", "prior.safetensors", "calibration.json"
ZOO = Path(__file__).parent / "zoo"
GATE, SHAPE = "gate", "shape"
"""Folders of the packages inside a package."""


class Card(Settings):
    """All that is needed to use the weights."""

    format: Literal[1, 2] = 2
    name: str
    version: str
    task: TaskConfig
    network: dict[str, Any]
    """Plain data until a back end builds it."""
    channels_in: PositiveInt
    channels_out: PositiveInt
    receptive_field: ReceptiveField
    preparation: Preparation
    backends: tuple[Literal["torch"], ...] = ("torch",)
    """In order of preference."""
    training_data: str = ""
    licence: str = ""
    """Of the training data."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """With the protocol that gave them."""
    intended_use: str = ""
    limits: str = ""
    """What the model must not be used for, and where it fails."""
    objectives: tuple[str, ...] = ()
    """What training made small, in words, the weight first."""
    experiment: dict[str, Any] = Field(default_factory=dict)
    """The resolved experiment that made it: the package can be trained again from itself."""
    weights_sha256: str = ""
    prior: dict[str, Any] | None = None
    """Of a network with a code book: the settings of a prior over its codes, plain data until it is built."""
    prior_sha256: str | None = None
    """Of prior.safetensors, where there is a prior."""
    gate_sha256: str | None = None
    """Of gate/card.json, where the package carries a gate."""
    shape_sha256: str | None = None
    """Of shape/card.json, where it carries a model of its masks' shapes."""
    soft_dice: Usual | None = None
    """Of a segmentation with a gate: how sure its answers are to images that it has not learnt from."""
    checks: InputChecks | None = None
    """Of a gate: what the images were like that its model was trained on."""


@dataclass(frozen=True, eq=False)
class ModelPackage:
    """A card and its weights. `load` and `seal` make it; both guarantee that they belong together."""

    card: Card
    weights: Mapping[str, NDArray[Any]]
    card_json: bytes
    """card.json as it was read or will be written; a later medae may write the same card in other words."""
    calibration: Calibration | None = None
    prior: Mapping[str, NDArray[Any]] | None = None
    """The weights of the prior, where the card has one."""
    gate: "ModelPackage | None" = None
    """An anomaly model of the images that this one was made from."""
    shape: "ModelPackage | None" = None
    """An anomaly model of their masks, as grey levels."""

    @classmethod
    def seal(
        cls, card: Card, weights: Mapping[str, NDArray[Any]], prior: Mapping[str, NDArray[Any]] | None = None
    ) -> Self:
        """A package in memory whose card carries the digests of these weights."""
        digests = {"weights_sha256": _sha256(_weights_bytes(weights))}
        if prior is not None:
            digests["prior_sha256"] = _sha256(_weights_bytes(prior))
        card = card.model_copy(update=digests)
        return cls(card, weights, _json_bytes(card), prior=prior)

    @property
    def digest(self) -> str:
        """ "sha256:" + the SHA-256 of card.json, which holds that of the weights."""
        return f"sha256:{_sha256(self.card_json)}"

    def calibrated(self, calibration: Calibration) -> Self:
        """The same package with another calibration. Raises PackageError when it was made for another package."""
        _require_match(calibration, self.digest, "the calibration")
        return replace(self, calibration=calibration)

    @property
    def calibrations(self) -> dict[str, str | None]:
        """The versions of its calibration and of those inside it, as a provenance names them."""
        parts = {"calibration": self, "gate_calibration": self.gate, "shape_calibration": self.shape}
        return {
            name: part.calibration.version if part is not None and part.calibration is not None else None
            for name, part in parts.items()
        }

    def gated(self, gate: "ModelPackage", shape: "ModelPackage | None" = None) -> Self:
        """The same model with a gate, and so with another card and digest; a calibration is lost with the old one."""
        digests = {"gate_sha256": _sha256(gate.card_json), "shape_sha256": shape and _sha256(shape.card_json)}
        card = self.card.model_copy(update=digests)
        return replace(self, card=card, card_json=_json_bytes(card), calibration=None, gate=gate, shape=shape)

    def retold(self, prior_weights: Mapping[str, NDArray[Any]] | None = None, **changes: Any) -> Self:
        """The same answers under a card that says more, and with another prior where one is given: a package with a
        digest of its own, which takes the calibration over."""
        card = self.card.model_copy(update=changes)
        sealed = type(self).seal(card, self.weights, self.prior if prior_weights is None else prior_weights)
        made = replace(sealed, gate=self.gate, shape=self.shape)
        if self.calibration is None:
            return made
        return made.calibrated(self.calibration.model_copy(update={"package_digest": made.digest}))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the package; the folder appears, or a package that was there is replaced as a whole.

        Raises OutputError where it cannot be written, and where the folder holds something else.
        """
        _write_folder(Path(folder), self._files())

    def _files(self) -> dict[str, bytes]:
        """Relative path -> content."""
        files = {
            "card.json": self.card_json,
            WEIGHTS: _weights_bytes(self.weights),
            "README.md": _readme(self.card, self.digest).encode(),
        }
        if self.prior is not None:
            files[PRIOR] = _weights_bytes(self.prior)
        if self.calibration is not None:
            files[CALIBRATION] = _json_bytes(self.calibration)
        for part, inner in self._inside().items():
            files |= {f"{part}/{name}": content for name, content in inner._files().items()}
        return files

    def _inside(self) -> "dict[str, ModelPackage]":
        """Folder -> the package there."""
        return {part: inner for part, inner in ((GATE, self.gate), (SHAPE, self.shape)) if inner is not None}

    def save_calibration(self, folder: Path) -> None:
        """Write its calibrations and those inside it, all or none, beside the cards and weights that are there; the
        file of one that it does not have is taken away. Raises OutputError."""
        parts = {CALIBRATION: self} | {f"{part}/{CALIBRATION}": inner for part, inner in self._inside().items()}
        made = {name: part.calibration for name, part in parts.items() if part.calibration is not None}
        write_files([AnswerFile(name, "application/json", _json_bytes(each)) for name, each in made.items()], folder)
        for name in parts.keys() - made.keys():
            try:
                (folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{folder / name}: cannot be taken away ({error.strerror}); do so yourself") from None

    @classmethod
    def load(cls, folder: Path, *, recalibrating: bool = False) -> Self:
        """Read and verify a package. recalibrating: its calibrations are to be made again, so that one that does not
        hold is left out, of the packages inside it too.

        Raises UnknownModel for no package, PackageError for one that does not hold.
        """
        if not (folder / "card.json").is_file():
            raise UnknownModel(f"{folder}: no model package there (a folder with card.json and weights.safetensors)")
        card_json = _read(folder / "card.json")
        card = _parse(folder / "card.json", card_json, Card)
        prior = None if card.prior_sha256 is None else _verified(folder / PRIOR, card.prior_sha256)
        package = cls(card, _verified(folder / WEIGHTS, card.weights_sha256), card_json, prior=prior)
        return replace(
            package,
            calibration=_calibration(folder / CALIBRATION, package.digest, recalibrating),
            gate=_inner(folder / GATE, card.gate_sha256, recalibrating),
            shape=_inner(folder / SHAPE, card.shape_sha256, recalibrating),
        )


def _calibration(path: Path, digest: str, recalibrating: bool) -> Calibration | None:
    if not path.is_file():
        return None
    try:
        calibration = _parse(path, _read(path), Calibration)
        _require_match(calibration, digest, str(path))
    except PackageError as error:
        if not recalibrating:
            raise
        logger.warning("a calibration is left out: %s", error)
        return None
    return calibration


def _inner(folder: Path, digest: str | None, recalibrating: bool) -> ModelPackage | None:
    """The package inside another one, which names it. Raises PackageError where it is another or has one itself."""
    if digest is None:
        if folder.exists():
            raise PackageError(f"{folder}: card.json does not name it; copy the package again, or take it away")
        return None
    try:
        package = ModelPackage.load(folder, recalibrating=recalibrating)
    except UnknownModel:
        raise PackageError(f"{folder}: card.json names it and it is not there; copy the package again") from None
    if _sha256(package.card_json) != digest:
        raise PackageError(f"{folder}: not the one that card.json names (its digest differs); copy the package again")
    if package.gate is not None or package.shape is not None or package.card.task.kind != "anomaly":
        raise PackageError(f"{folder}: a gate is an anomaly model without a gate of its own; make the package again")
    return package


def load(package: str | os.PathLike[str]) -> ModelPackage:
    """A package by its folder, or by a name of `shipped()`. Raises UnknownModel, PackageError."""
    return ModelPackage.load(folder_of(package))


def folder_of(package: str | os.PathLike[str]) -> Path:
    """Where a package is, by its folder or by a name of `shipped()`. Raises UnknownModel."""
    folder = Path(package)
    if folder.is_dir():
        return folder
    names = shipped()
    if str(package) in names:
        return names[str(package)]
    listed = ", ".join(sorted(names)) or "none"
    raise UnknownModel(f"{package}: neither a folder nor the name of a shipped model (shipped: {listed})")


def shipped() -> dict[str, Path]:
    """The packages that come with medae: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(ZOO.glob("*/card.json"))}


def _require_match(calibration: Calibration, digest: str, where: str) -> None:
    if calibration.package_digest != digest:
        raise PackageError(
            f"{where} was made for another package ({calibration.package_digest[:19]}, and this is {digest[:19]}): "
            "`medae calibrate` makes it again"
        )


def _parse(path: Path, text: bytes, kind: type[SettingsT]) -> SettingsT:
    try:
        data = json.loads(text)
    except ValueError:
        raise PackageError(f"{path}: not valid JSON: the package is damaged. Copy or train it again.") from None
    made = data.get("format") if isinstance(data, dict) else None
    if isinstance(made, int) and made > FORMAT:
        raise PackageError(f"{path}: format {made} is newer than this medae reads ({FORMAT}); update medae")
    try:
        return validate_settings(data, kind, str(path))
    except SettingsError as error:
        raise PackageError(str(error)) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); the package is not complete") from None


def _verified(path: Path, digest: str) -> Mapping[str, NDArray[Any]]:
    """The tensors of a file that card.json names by its digest."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    data = _read(path)
    if _sha256(data) != digest:
        raise PackageError(
            f"{path.parent}: {path.name} is not what card.json was made for (its digest differs): the package is "
            "damaged or was changed. Copy or train it again."
        )
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise PackageError(f"{path.parent}: {path.name} cannot be read: {error}") from None


def _weights_bytes(weights: Mapping[str, NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    # sorted and C-ordered: the same weights always give the same bytes
    return save({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)})


def _json_bytes(settings: Settings) -> bytes:
    return (settings.model_dump_json(indent=2) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """All files or none: written beside, then renamed into place."""
    folder = folder.resolve()  # a link goes on leading to the package
    require_replaceable(folder)
    made = folder.with_name(f".{uuid.uuid4().hex}.part")
    try:
        write_files([AnswerFile(name, "", data) for name, data in files.items()], made)
        _swap(made, folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); nothing was changed there") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def require_replaceable(folder: Path) -> None:
    """Raises OutputError where anything but a package would be lost."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: a file is there; a package is a folder. Choose another place.")
    if folder.is_dir() and not (folder / "card.json").exists() and any(folder.iterdir()):
        raise OutputError(f"{folder}: holds something else than a model package; choose another place")


def _swap(made: Path, folder: Path) -> None:
    """`made` becomes `folder`; what was there is removed only after that has worked."""
    if not folder.exists():
        made.rename(folder)
        return
    old = made.with_suffix(".old")
    folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _readme(card: Card, digest: str) -> str:
    """The model card for people."""
    facts = {
        "task": card.task.kind,
        **({"labels": _labels_in_words(card.task)} if isinstance(card.task, Segmentation) else {}),
        "takes": _input_in_words(card),
        "network": f"{card.network.get('kind', '?')}, {card.receptive_field.dims}-D",
        **({"trained for": "; ".join(card.objectives)} if card.objectives else {}),
        "training data": card.training_data or "not stated",
        "licence of the data": card.licence or "not stated",
        "intended use": card.intended_use or "not stated",
        "limits": card.limits or "not stated",
        "digest": digest,
    }
    lines = [f"# {card.name} {card.version}", "", *(f"- **{name}**: {text}" for name, text in facts.items())]
    beware = card.metrics.get("test", {}).get("beware", [])
    if beware:
        lines += ["", "## Beware", "", *(f"- {said}" for said in beware)]
    if card.metrics:
        lines += ["", "## Metrics", "", "```json", json.dumps(card.metrics, indent=2), "```"]
    return "\n".join(lines) + "\n"


def _labels_in_words(task: Segmentation) -> str:
    return ", ".join(f"{number} {label.name}" for number, label in enumerate(task.labels, 1))


def _input_in_words(card: Card) -> str:
    preparation = card.preparation
    words = ["grey" if preparation.channels == 1 else "RGB", "images" if card.receptive_field.dims == 2 else "volumes"]
    if preparation.spacing_mm is not None:
        words.append("of known voxel size, seen at {:g} x {:g} x {:g} mm".format(*preparation.spacing_mm))
    return f"{' '.join(words)}; intensities by {preparation.intensity.kind}"
