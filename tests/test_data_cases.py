"""Case lists and folders: what holds is read, what does not is refused by line and column, and no patient leaks."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from pydantic import TypeAdapter, ValidationError

from medae.data import SPLITS, Case, CaseList, DataConfig, Folder, label_image
from medae.data.cases import divided, in_place_of, read_cases
from medae.errors import GeometryError, SettingsError, UnfitImage
from medae.image import Geometry, Image
from tests.conftest import tilted_affine


def png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(pixels).save(path)
    return path


def grey(seed: int = 0, shape: tuple[int, int] = (9, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(folder: Path, text: str) -> Path:
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in "abc":
        png(tmp_path / "in" / f"{name}.png", grey(ord(name)))
    return tmp_path


def test_a_list_is_read_relative_to_its_folder(pictures):
    text = (
        "\ufeffid, image ,patient,split,label\n1,in/a.png,p,train,normal\n\n2,in/b.png,p,train,\n3,in/c.png,,test,ink\n"
    )
    path = write(pictures, text)
    data = CaseList(path=path)
    cases = data.all_cases()
    assert [case.id for case in cases] == ["1", "2", "3"]
    assert cases[0].image == pictures / "in/a.png"
    assert (cases[1].label, cases[2].patient, cases[2].label) == (None, None, "ink")
    assert [case.id for case in data.cases("train")] == ["1", "2"]
    assert data.cases("validation") == []
    (loaded,) = data.load("test")
    assert loaded.case == cases[2]
    assert loaded.target is None
    np.testing.assert_array_equal(loaded.image.pixels[0, 0], grey(ord("c")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: id: this column is missing"),
        ("id,image,colour\n", ":1: colour: no such column; columns are id, image, target"),
        ("id,image,id\n", ":1: id: this column is there twice"),
        ("id\n1\n", ":1: image: this column is missing"),
        ("id,image\n1,in/x.png\n", ":2: image: no such file"),
        ("id,image,target\n1,in/a.png,in/x.png\n", ":2: target: no such file"),
        ("id,image\n1,in/a.png\n\n1,in/b.png\n", ":4: id: 1 is on line 2 already"),
        ("id,image,split\n1,in/a.png,training\n", ":2: split: Input should be 'train', 'validation' or 'test'"),
        ("id,image,split\n1,in/a.png,train\n2,in/b.png,\n", ":3: split: empty"),
        ("id,image,patient,split\n1,in/a.png,p,train\n2,in/b.png,p,test\n", ":3: split: this patient is in train"),
        ("id,image\n1,in/a.png,more\n", ":2: 3 cells in a list of 2 columns"),
        ("id,image\n../1,in/a.png\n", ":2: id: "),
        ("id,image\n,in/a.png\n", ":2: id: Field required"),
        ('id,image\n"1,in/a.png\n', "not valid CSV"),
    ],
)
def test_a_list_that_does_not_hold_is_refused_by_line_and_column(pictures, text, said):
    path = write(pictures, text)
    with pytest.raises(SettingsError) as caught:
        read_cases(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_every_mistake_has_its_line_up_to_a_point(pictures):
    path = write(pictures, "id,image\n" + "".join(f"{n},in/{n}.png\n" for n in range(50)))
    with pytest.raises(SettingsError) as caught:
        read_cases(path)
    lines = str(caught.value).splitlines()
    assert lines[3].startswith(f"{path}:5: image: ")
    assert lines[-1] == "and 30 more"


def test_a_list_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        read_cases(tmp_path / "none.csv")
    (tmp_path / "cases.csv").write_bytes(b"PAR1\xff\xfe\x00")
    with pytest.raises(SettingsError, match="CSV in UTF-8"):
        read_cases(tmp_path / "cases.csv")


patients = st.lists(st.sampled_from([None, "a", "b", "c", "d", "e", "f", "g"]), min_size=1, max_size=30)
parts = st.floats(0, 0.45)


def some_cases(names: list[str | None]) -> list[Case]:
    return [Case(id=str(n), image=None, patient=name) for n, name in enumerate(names)]


@settings(deadline=None)
@given(patients, parts, parts, st.randoms(use_true_random=False))
def test_no_patient_leaks_and_order_does_not_matter(names, validation, test, random):
    cases = some_cases(names)
    split = {case.id: case.split for case in divided(cases, validation, test)}
    assert all(split.values())
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert {case.id: case.split for case in divided(shuffled, validation, test)} == split
    for name in set(names) - {None}:
        assert len({split[case.id] for case in cases if case.patient == name}) == 1


def test_parts_are_kept():
    cases = divided(some_cases([None] * 200), 0.2, 0.1)
    counts = {split: sum(case.split == split for case in cases) for split in SPLITS}
    assert counts == {"train": 140, "validation": 40, "test": 20}
    few = divided(some_cases([None] * 4), 0.1, 0.1)
    assert sorted(str(case.split) for case in few) == ["test", "train", "train", "validation"]
    assert {case.split for case in divided(some_cases([None] * 9), 0, 0)} == {"train"}


def test_a_patient_and_an_id_that_look_alike_are_two():
    cases = divided([Case(id="1", image=None), *some_cases(["1"] * 3)], 0.4, 0)
    assert len({case.split for case in cases[1:]}) == 1


def test_parts_that_leave_nothing_are_refused():
    with pytest.raises(ValidationError, match="nothing to train on"):
        CaseList(path=Path("x.csv"), validation=0.5, test=0.5)


def test_a_folder_of_pictures_and_masks(tmp_path):
    for n in range(8):
        png(tmp_path / f"images/p{n // 2}_{n}.png", grey(n))
        png(tmp_path / f"masks/p{n // 2}_{n}_mask.png", (grey(n) > 99).astype(np.uint8) * 255)
    png(tmp_path / "images/._p0_0.png", grey())
    data = Folder(root=tmp_path, images="images/*.png", targets="masks/*_mask.png", patient=r"^(p\d+)_", test=0.25)
    cases = data.all_cases()
    assert [case.id for case in cases] == [f"p{n // 2}_{n}" for n in range(8)]
    assert [case.patient for case in cases[:3]] == ["p0", "p0", "p1"]
    for name in {case.patient for case in cases}:
        assert len({case.split for case in cases if case.patient == name}) == 1
    loaded = data.read(cases[5], labels=1)
    np.testing.assert_array_equal(loaded.target.pixels[0, 0], grey(5) > 99)
    assert data.read(cases[5]).target.pixels.max() == 255, "not asked for labels: the picture as it is"


def test_a_folder_of_volumes(tmp_path):
    for folder, dtype in (("imagesTr", np.int16), ("labelsTr", np.uint8)):
        (tmp_path / folder).mkdir()
        for name in ("case_2", "case_1"):
            pixels = (np.arange(60).reshape(3, 4, 5) % 3).astype(dtype)
            nibabel.save(nibabel.Nifti1Image(pixels, tilted_affine()), tmp_path / folder / f"{name}.nii.gz")
    data = Folder(root=tmp_path, images="imagesTr/*.nii.gz", targets="labelsTr/*.nii.gz", validation=0, test=0)
    loaded = list(data.load("train", labels=2))
    assert [each.case.id for each in loaded] == ["case_1", "case_2"]
    for each in loaded:
        assert each.image.pixels.shape == (1, 5, 4, 3)
        np.testing.assert_array_equal(each.target.pixels, each.image.pixels)
        each.image.geometry.require_same_grid(each.target.geometry)


def test_folders_within_folders_give_names_and_series(tmp_path):
    for patient in ("x", "y"):
        png(tmp_path / "images" / patient / "1.png", grey())
        (tmp_path / "scans" / patient).mkdir(parents=True)
    assert [case.id for case in Folder(root=tmp_path, images="images/**/*.png").all_cases()] == ["x_1", "y_1"]
    scans = Folder(root=tmp_path, images="scans/*").all_cases()
    assert [(case.id, case.image) for case in scans] == [(name, tmp_path / "scans" / name) for name in "xy"]


def test_partners_that_are_missing_are_named(tmp_path):
    for name in "abcdefgh":
        png(tmp_path / "i" / f"{name}.png", grey())
    for name in ("a", "z"):
        png(tmp_path / "t" / f"{name}.tif", grey())
    with pytest.raises(SettingsError) as caught:
        Folder(root=tmp_path, images="i/*.png", targets="t/*.tif").all_cases()
    assert "7 image(s) without target: b, c, d, e, f and 2 more" in str(caught.value)
    assert "1 target(s) without image: z" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"root": "none"}, "no such folder"),
        ({"images": "*.dcm"}, "nothing matches"),
        ({"images": "i/*"}, "have the name a"),
        ({"patient": r"^p(\d)"}, "finds nothing in"),
    ],
)
def test_a_folder_that_does_not_hold(tmp_path, change, said):
    for suffix in ("png", "tif"):
        png(tmp_path / f"i/a.{suffix}", grey())
    root = tmp_path / change.pop("root", ".")
    with pytest.raises(SettingsError, match=said):
        Folder(**{"root": root, "images": "i/*.png", **change}).all_cases()


@pytest.mark.parametrize(
    "bad",
    [
        {"images": "all.png"},
        {"images": "../*.png"},
        {"images": "/etc/*"},
        {"images": "*", "patient": "p.*"},
        {"images": "*", "patient": "("},
    ],
)
def test_folder_settings_that_do_not_hold(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(DataConfig).validate_python({"kind": "folder", "root": "x", **bad})


def test_a_target_elsewhere_is_refused(tilted_volume):
    moved = Image(np.zeros((1, 7, 9, 11)), tilted_volume.geometry.moved((0, 0, 0.5), (7, 9, 11)))
    with pytest.raises(GeometryError):
        in_place_of(tilted_volume, moved)
    with pytest.raises(GeometryError):
        in_place_of(tilted_volume, Image(np.zeros((1, 7, 9, 10)), Geometry.picture(9, 10, slices=7)))


def test_a_picture_takes_the_place_of_its_image(tilted_volume):
    target = in_place_of(tilted_volume, Image(np.ones((1, 7, 9, 11)), Geometry.picture(9, 11, slices=7)))
    assert target.geometry is tilted_volume.geometry


def labels(values, **kind) -> np.ndarray:
    return label_image(Image.from_picture(np.array([values], **kind)), 3).pixels


def test_label_images_as_tools_write_them():
    np.testing.assert_array_equal(labels([0, 1, 3], dtype=np.int16).ravel(), [0, 1, 3])
    np.testing.assert_array_equal(labels([0.0, 2.0], dtype=np.float32).ravel(), [0, 2])
    np.testing.assert_array_equal(labels([True, False]).ravel(), [1, 0])
    np.testing.assert_array_equal(labels([0, 255, 255], dtype=np.uint8).ravel(), [0, 1, 1])
    np.testing.assert_array_equal(labels([[0, 0, 0], [2, 2, 2]], dtype=np.uint8).ravel(), [0, 2])
    assert labels([0, 1], dtype=np.int64).dtype == np.uint8
    many = label_image(Image.from_picture(np.array([[0, 255, 300]])), 300).pixels
    assert many.dtype == np.uint16
    np.testing.assert_array_equal(many.ravel(), [0, 255, 300])


@pytest.mark.parametrize(
    ("values", "said"),
    [([0, 4], r"from 0 to 4; .* 1\.\.3"), ([-1, 0], "from -1"), ([0, 0.5], "fractions"), ([[1, 2, 3]], "one channel")],
)
def test_label_images_that_are_none(values, said):
    with pytest.raises(UnfitImage, match=said):
        labels(values)


def test_a_case_that_is_embedded_has_no_file(tmp_path):
    with pytest.raises(SettingsError, match="has no image"):
        Folder(root=tmp_path, images="*").read(Case(id="1", image=None))


def test_hippocampus_as_it_is_published(shared_data):
    root = shared_data / "msd_task04_hippocampus"
    data = Folder(root=root, images="imagesTr/*.nii.gz", targets="labelsTr/*.nii.gz")
    cases = data.all_cases()
    assert len(cases) > 100
    loaded = data.read(cases[0], labels=2)
    assert set(np.unique(loaded.target.pixels)) == {0, 1, 2}
