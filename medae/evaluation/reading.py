"""Which cases a call means, and how each is read."""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medae.data import Case, Data, DataConfig, LoadedCase, Split
from medae.data.cases import CaseList, read_cases, with_labels
from medae.errors import InputError, UsageError
from medae.image import Image
from medae.metrics.detection import NORMAL
from medae.package import ModelPackage
from medae.pseudonyms import Pseudonyms
from medae.tasks import Segmentation

logger = logging.getLogger(__name__)


def to_read(
    package: ModelPackage, cases: Data | Iterable[LoadedCase] | Path | None, split: Split
) -> Iterator[tuple[Case, Callable[[], LoadedCase]]]:
    """Each case and how to read it, so that one that cannot be read costs only itself."""
    task = package.card.task
    labels = len(task.labels) if isinstance(task, Segmentation) else None
    data: Data
    if isinstance(cases, Path):
        data = CaseList(path=cases)
        listed = [case for case in read_cases(cases) if case.split in (split, None)]
    elif cases is None or isinstance(cases, Data):
        data = own_data(package) if cases is None else cases
        listed = data.cases(split)
    else:
        yield from ((loaded.case, partial(with_labels, loaded, labels)) for loaded in cases)
        return
    yield from ((case, partial(data.read, case, labels=labels)) for case in listed)


def pseudonymous(case: Case, pseudonyms: Pseudonyms) -> Case:
    """The case as tables and reports may name it; reading takes the case itself."""
    patient = None if case.patient is None else pseudonyms.name(case.patient)
    return case.model_copy(update={"id": pseudonyms.name(case.id), "patient": patient})


def own_data(package: ModelPackage) -> Data:
    settings = package.card.experiment.get("data")
    if settings is None:
        raise UsageError("this package does not say which data it was made from; name the cases to evaluate on")
    data: Data = TypeAdapter[Any](DataConfig).validate_python(settings)
    return data


def normal_images(data: Data) -> Iterator[Image]:
    """Of the training split, what is not labelled as abnormal; one that cannot be read costs only itself."""
    for case in data.cases("train"):
        if case.label in (None, NORMAL):
            try:
                yield data.read(case).image
            except InputError as error:
                logger.warning("case %s (train) is left out: %s", case.id, error)


def described(cases: Data | Iterable[LoadedCase] | Path | None, split: Split) -> str:
    """Where the cases came from, for the report."""
    if cases is None or isinstance(cases, Data):
        return f"{split} cases of {'its own experiment' if cases is None else 'the given data'}"
    return f"cases of {cases.name}" if isinstance(cases, Path) else "cases given by a program"
