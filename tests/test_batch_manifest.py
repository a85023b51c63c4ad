"""What the inputs of a batch mean."""

from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from medae.batch.manifest import expand, list_items
from medae.errors import UsageError
from tests.batch_parts import write_pictures, write_series


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "in")


def test_a_folder_gives_an_item_for_each_image(pictures: Path) -> None:
    manifest = list_items([str(pictures)])
    assert [item.id for item in manifest.items] == ["a", "b", "c"]
    assert manifest.passed_over == 1


def test_a_damaged_image_of_a_folder_is_not_passed_over(pictures: Path) -> None:
    (pictures / "d.nii.gz").write_bytes(b"")
    assert [item.id for item in list_items([str(pictures)]).items] == ["a", "b", "c", "d"]


def test_a_pattern_gives_what_it_matches_in_order(pictures: Path) -> None:
    assert [path.name for path in expand(str(pictures / "[ac].png"))] == ["a.png", "c.png"]
    assert expand(str(pictures / "*.tif")) == []


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "scan[1].png"
    path.write_bytes(b"")
    assert expand(str(path)) == [path]


def test_items_with_one_stem_get_names_of_their_own(tmp_path: Path) -> None:
    for name in ("x.png", "x.nii.gz", "x-2.png", "X.tif"):
        (tmp_path / name).write_bytes(b"")
    ids = [item.id for item in list_items([str(tmp_path / "x.png"), str(tmp_path)]).items]
    assert len({name.casefold() for name in ids}) == 4
    assert ids[0] == "x"


def test_an_answer_is_called_after_the_link_that_was_named(pictures: Path) -> None:
    (pictures.parent / "case-7.png").symlink_to(pictures / "a.png")
    assert [item.id for item in list_items([str(pictures.parent / "case-7.png")]).items] == ["case-7"]


def test_slices_of_one_series_are_one_item_however_they_are_given(tmp_path: Path) -> None:
    first = write_series(tmp_path / "first", [0, 5, 10])
    write_series(tmp_path / "second", [0, 5])
    by_folder = list_items([str(tmp_path)])
    assert [(item.id, len(item.files)) for item in by_folder.items] == [("first", 3), ("second", 2)]
    by_files = list_items([str(path) for path in first])
    assert [len(item.files) for item in by_files.items] == [3]


def test_dicom_without_a_picture_fails_when_named_and_is_passed_over_in_a_folder(tmp_path: Path) -> None:
    report = get_testdata_file("reportsi.dcm")
    assert len(list_items([report]).items) == 1
    (tmp_path / "report.dcm").write_bytes(Path(report).read_bytes())
    write_series(tmp_path / "scan", [0, 5])
    manifest = list_items([str(tmp_path)])
    assert ([item.id for item in manifest.items], manifest.passed_over) == (["scan"], 1)


def test_answers_of_an_earlier_run_are_no_inputs(pictures: Path) -> None:
    out = pictures / "answers"
    out.mkdir()
    (out / "a_labels.png").write_bytes(b"")
    assert len(list_items([str(pictures)], out=out).items) == 3
    with pytest.raises(UsageError, match="output folder is one of the inputs"):
        list_items([str(pictures)], out=pictures)


def test_inputs_without_an_image_are_a_wrong_call(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UsageError, match="no image among the inputs"):
        list_items([str(tmp_path)])
    with pytest.raises(UsageError, match="input 2 of 2"):
        list_items([str(tmp_path), str(tmp_path / "gone.png")])


def test_a_circle_of_links_ends(pictures: Path) -> None:
    (pictures / "again").symlink_to(pictures, target_is_directory=True)
    assert len(list_items([str(pictures)]).items) == 3
