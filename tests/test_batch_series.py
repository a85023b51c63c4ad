"""One of several series from folders, media and archives; and even slices of uneven ones: listed, planned, answered."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medae.batch.item import Item
from medae.batch.manifest import list_items
from medae.batch.plan import write_plan
from medae.batch.settings import BatchSettings
from medae.batch.work import decode
from medae.errors import UsageError
from medae.image import Image
from medae.inspection import check_item
from tests.batch_parts import write_series
from tests.dicom_made import as_file, sample
from tests.test_io_dicom_kinds import VOLUME, enhanced

UIDS = ("1.2.3.1", "1.2.3.2", "1.2.3.3")
PLACES = ([0, 5, 10], [0, 5], [0, 5, 10, 15])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three series, beside notes and a broken file."""
    folder = tmp_path / "study"
    for uid, places in zip(UIDS, PLACES, strict=True):
        write_series(folder / uid[-1], places, uid)
    (folder / "notes.txt").write_text("about this patient")
    (folder / "broken.dcm").write_bytes(sample("CT_small.dcm").read_bytes()[:200])
    return folder


def zipped(folder: Path) -> Path:
    target = folder.parent / "study.zip"
    with zipfile.ZipFile(target, "w") as table:
        for path in sorted(folder.rglob("*.*")):
            table.write(path, path.relative_to(folder))
    return target


def image_of(item: Item) -> Image:
    image = decode(item).image
    assert isinstance(image, Image), image
    return image


def series_of(image: Image) -> str:
    return str(image.source.datasets[0].SeriesInstanceUID)  # type: ignore[attr-defined]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_of_several_series_is_chosen_by_number_or_uid(study: Path, packed: bool, number: int) -> None:
    source = [str(zipped(study) if packed else study)]
    for chosen in (str(number), UIDS[number - 1]):
        (item,) = list_items(source, series=chosen).items
        image = image_of(item)
        assert series_of(image) == UIDS[number - 1]
        assert image.geometry.shape[0] == len(PLACES[number - 1])


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("chosen", ["4", "1.2.9"])
def test_a_wrong_choice_lists_what_there_is_and_no_word_about_a_patient(study: Path, packed: bool, chosen: str) -> None:
    with pytest.raises(UsageError) as caught:
        list_items([str(zipped(study) if packed else study)], series=chosen)
    said = str(caught.value)
    assert all(f"{count} x CT" in said for count in (2, 3, 4))
    numbers = {int(number) for number in re.findall(r"\[(\d+)\]", said)}
    assert numbers == {1, 2, 3}
    assert "CompressedSamples" not in said and "1.2.3" not in said and "study" not in said


def test_all_is_each_and_so_is_nothing_said(study: Path) -> None:
    (study / "broken.dcm").unlink()
    every = list_items([str(study)]).items
    assert list_items([str(study)], series="all").items == every
    assert [series_of(image_of(item)) for item in every] == [*UIDS]


@pytest.mark.parametrize("text", ["0", "", "-1", "first", "1.", "1" * 65 + ".2", "1.2\n"])
def test_what_names_no_series_is_refused(study: Path, text: str) -> None:
    with pytest.raises(UsageError, match="a series is named by its number"):
        list_items([str(study)], series=text)


def test_a_choice_needs_a_series(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="no DICOM series"):
        list_items([str(tmp_path / "in")], series="1")


def test_a_medium_is_its_series() -> None:
    directory = sample("dicomdirtests/DICOMDIR")
    items = list_items([str(directory)]).items
    named = {path for item in items for path in item.files}
    assert len(items) > 3 and all(isinstance(path, Path) and path.is_file() for path in named)
    (item,) = list_items([str(directory)], series="1").items
    assert set(item.files) <= named
    uid = str(dcmread(str(item.files[0])).SeriesInstanceUID)
    (again,) = list_items([str(directory)], series=uid).items
    assert again.files == item.files


def test_one_of_several_volumes_of_a_file_is_chosen_and_stays_so_in_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "volumes.dcm"
    path.write_bytes(as_file(enhanced(VOLUME, stacks=2)))
    images = []
    for number in (1, 2):
        (item,) = list_items([str(path)], series=str(number)).items
        assert item.series == number
        plan = write_plan([item], tmp_path / "plan.parquet")
        assert list(plan.items(np.ones(1, bool))) == [item]
        images.append(image_of(item))
    assert [image.geometry.shape for image in images] == [(3, 7, 5)] * 2
    assert not np.array_equal(images[0].pixels, images[1].pixels)


def uneven(folder: Path, places: Sequence[float]) -> list[str]:
    write_series(folder, list(places))
    return [str(folder)]


def test_uneven_slices_are_refused_or_made_even_on_request(tmp_path: Path) -> None:
    source = uneven(tmp_path / "scan", [0, 5, 15, 20])
    (item,) = list_items(source).items
    assert check_item(item, None).code == "bad-series"
    (item,) = list_items(source, regular_grid=True).items
    plan = write_plan([item], tmp_path / "plan.parquet")
    (item,) = plan.items(np.ones(1, bool))
    assert item.regular_grid and check_item(item, None).accepted
    image = image_of(item)
    assert image.geometry.shape[0] == 5
    np.testing.assert_allclose(image.geometry.spacing[0], 5)


def test_a_batch_knows_both(tmp_path: Path) -> None:
    settings = BatchSettings(packages=("p",), inputs=("i",), out=tmp_path, series="2", regular_grid=True)
    assert BatchSettings.model_validate(settings.model_dump(mode="json")) == settings
