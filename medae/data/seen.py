"""What a model sees in use, as normal images for its gate: the inputs of another experiment, or its masks."""

import hashlib
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from medae.calibration import FEWEST_REFERENCES
from medae.data.cases import Case, CaseList, Data, LoadedCase
from medae.data.corruption import CorruptionConfig
from medae.data.folder import Folder
from medae.data.samples import Sample
from medae.errors import SettingsError, UnfitImage
from medae.image import Image
from medae.preparation import Preparation, stretched

FEWEST_LEARNT = 40
"""Images that a gate must have to learn from before they are taken for its calibration."""


class Seen(Data):
    """The images of another data set as a model sees them, divided anew: a part of them calibrates.

    Training and validation images of the other set are put together; the reference images are its validation images
    and, until there are enough, training images. A gate learns from the rest, so that no reference was learnt from.
    """

    kind: Literal["seen"] = "seen"
    of: Annotated[CaseList | Folder | Sample, Field(discriminator="kind")]
    """The data that the model was trained on."""
    masks: PositiveInt | None = None
    """Not the images but their targets, which have so many labels; null: the images."""
    corruption: CorruptionConfig | None = None
    """What the model mends: it sees damaged images, so half of these are damaged."""
    preparation: Preparation = Preparation()
    """In whose range the corruption's level is."""
    references: PositiveInt = 200
    """So many images calibrate, where more than twice as many are there; else half of them or, where that leaves a few
    to learn from, as many as a calibration needs."""

    @model_validator(mode="after")
    def _either_masks_or_damage(self) -> "Seen":
        if self.masks is not None and self.corruption is not None:
            raise ValueError("masks are not damaged: give masks or corruption")
        return self

    @property
    def licence(self) -> str | None:
        """Of the other data."""
        return self.of.licence

    def all_cases(self) -> list[Case]:
        found = [
            case.model_copy(update={"label": None})
            for case in self.of.all_cases()
            if self.masks is None or case.target or case.image is None
        ]
        known = sorted((case for case in found if case.split != "test"), key=_drawn)
        known.sort(key=lambda case: case.split != "validation")
        count = _references(len(known), self.references)
        patients = {case.patient or case.id for case in known[:count]}
        divided = [
            case.model_copy(update={"split": "validation" if (case.patient or case.id) in patients else "train"})
            for case in known
        ]
        return [*divided, *(case for case in found if case.split == "test")]

    def read(self, case: Case, *, labels: int | None = None) -> LoadedCase:
        if self.masks is not None:
            loaded = self.of.read(case, labels=self.masks)
            if loaded.target is None:
                raise UnfitImage("this case has no label image, so there is no mask to learn from")
            return LoadedCase(case, picture_of_labels(loaded.target, self.masks), None)
        image = self.of.read(case).image
        return LoadedCase(case, self._as_seen(image, case), None)

    def _as_seen(self, image: Image, case: Case) -> Image:
        number = int(_drawn(case)[:8], 16)
        if self.corruption is None or number % 2:
            return image
        return corrupted(image, self.preparation, self.corruption, number)


def corrupted(clean: Image, preparation: Preparation, corruption: CorruptionConfig | None, seed: int) -> Image:
    """The image after a corruption whose level is in the preparation's range; float32, neither rounded nor cut to the
    range of the stored type. Without a corruption: the clean image in the same units."""
    lower, scale = preparation.range_of(clean.pixels)
    x = stretched(clean.pixels, lower, scale)
    noisy = x if corruption is None else corruption.add_to(x, seed)
    if preparation.intensity.kind == "full_range":  # real numbers in 0..1 are what it takes as they are
        return clean.with_pixels(noisy)
    return clean.with_pixels((noisy * np.float32(scale) + np.float32(lower)).astype(np.float32))


def picture_of_labels(labels: Image, count: int) -> Image:
    """A label image -> grey levels (uint8), evenly from black (background) to white (the last label)."""
    if int(labels.pixels.max()) > count:
        raise SettingsError(f"labels go up to {count}, got {int(labels.pixels.max())}")
    levels = np.rint(np.linspace(0, 255, count + 1)).astype(np.uint8)
    return labels.with_pixels(levels[labels.pixels[:1]])


def _references(known: int, wanted: int) -> int:
    needed = FEWEST_REFERENCES if known >= FEWEST_REFERENCES + FEWEST_LEARNT else 0
    return min(wanted, max(known // 2, needed))


def _drawn(case: Case) -> str:
    """An order that has nothing to do with names."""
    return hashlib.sha256(case.id.encode()).hexdigest()
