"""Configuration mistakes are found on reading, each with its file, line, field and reason; no YAML runs code."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, ValidationError, model_validator

from medae.batch.settings import BatchSettings
from medae.errors import SettingsError
from medae.experiment import Experiment
from medae.settings import Settings, load_settings, validate_settings
from medae.shipped import configs_folder


class Cat(Settings):
    kind: Literal["cat"] = "cat"
    lives: PositiveInt = 9


class Dog(Settings):
    kind: Literal["dog"] = "dog"
    tricks: tuple[str, ...] = ()


class Home(Settings):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    rooms: PositiveInt = 2
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()

    @model_validator(mode="after")
    def _cats_need_rooms(self) -> "Home":
        if self.pet.kind == "cat" and self.rooms < 2:
            raise ValueError(f"a cat needs 2 rooms, got {self.rooms}")
        return self


@pytest.fixture
def load(tmp_path):
    def load(text: str, *overrides: str) -> Home:
        path = tmp_path / "home.yaml"
        path.write_text(text)
        return load_settings(path, Home, overrides)

    return load


@pytest.fixture
def refused(load, tmp_path):
    """The lines of the error, without the folder."""

    def refused(text: str, *overrides: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return refused


def test_defaults_and_unions(load):
    home = load("pet:\n  kind: dog\n  tricks: [sit]\n")
    assert home == Home(pet=Dog(tricks=("sit",)), rooms=2)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Cat().lives = 3


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("pet:\n  kind: cat\n  lifes: 9\n", "home.yaml:3: pet.lifes: ", "Extra inputs are not permitted"),
        ("pet:\n  kind: cat\n\n  lives: many\n", "home.yaml:4: pet.lives: ", "valid integer"),
        ("pet:\n  kind: cat\n  lives: 0\n", "home.yaml:3: pet.lives: ", "greater than 0"),
        ("rooms: 3\npet:\n  kind: bird\n", "home.yaml:2: pet: ", "'cat', 'dog'"),
        ("rooms: 3\npet:\n  tricks: []\n", "home.yaml:2: pet: ", "discriminator 'kind'"),
        ("rooms: 3\n", "home.yaml:1: pet: ", "Field required"),
        ("pet: {kind: dog}\npets:\n- kind: cat\n- kind: cat\n  lives: x\n", "home.yaml:5: pets.1.lives: ", "integer"),
        ("pet:\n  kind: dog\n  tricks:\n  - sit\n  - [roll]\n", "home.yaml:5: pet.tricks.1: ", "valid string"),
        ("rooms: 1\npet:\n  kind: cat\n", "home.yaml:1: ", "a cat needs 2 rooms, got 1"),
        ("rooms: .inf\npet:\n  kind: cat\n", "home.yaml:1: rooms: ", "finite"),
    ],
)
def test_each_mistake_has_its_line_field_and_reason(refused, text, place, reason):
    (line,) = refused(text)
    assert line.startswith(place) and reason in line


def test_all_mistakes_are_told_at_once(refused):
    lines = refused("rooms: -1\nroof: red\npet:\n  kind: cat\n  lives: no\n")
    assert sorted(line.split(": ")[0] for line in lines) == ["home.yaml:1", "home.yaml:2", "home.yaml:5"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pet: [1, 2\nrooms: 3\n", "home.yaml:2: not valid YAML"),
        ("pet:\n\tkind: cat\n", "home.yaml:2: not valid YAML"),
        ("", "home.yaml:1: expected `field: value` lines, got NoneType"),
        ("- 1\n", "home.yaml:1: expected `field: value` lines, got list"),
        ("just words\n", "home.yaml:1: expected `field: value` lines, got str"),
        ("pet: \x00\n", "home.yaml: not valid YAML"),
    ],
)
def test_what_is_no_configuration(refused, text, expected):
    assert refused(text)[0].startswith(expected)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "none.yaml", Home)
    with pytest.raises(SettingsError, match="cannot be read as text"):
        load_settings(tmp_path, Home)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read as text"):
        load_settings(tmp_path / "binary.yaml", Home)


def test_yaml_runs_no_code(refused, tmp_path):
    made = tmp_path / "made"
    (line,) = refused(f"pet: !!python/object/apply:os.mkdir ['{made}']\n")
    assert "not valid YAML" in line and not made.exists()


def test_set_changes_one_value(load):
    text = "pet:\n  kind: cat\npets:\n- kind: dog\n"
    assert load(text, "rooms=4").rooms == 4
    assert load(text, "pet.lives=3").pet == Cat(lives=3)
    assert load(text, "pet={kind: dog, tricks: [sit]}").pet == Dog(tricks=("sit",))
    assert load(text, "pets.0.tricks=[a, b]").pets == (Dog(tricks=("a", "b")),)
    assert load(text, "pets.0={kind: cat}").pets == (Cat(),)
    assert load(text, "rooms=4", "rooms=5").rooms == 5


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("rooms", "expected field=value"),
        ("=3", "expected field=value"),
        ("rooms=[1", "not valid YAML"),
        ("rooms.big=1", "`big` does not exist"),
        ("pets.7.lives=1", "`7` does not exist"),
        ("pets.7=1", "`7` does not exist"),
        ("pets.first=1", "`first` does not exist"),
        ("pets.-1=1", "`-1` does not exist"),
        ("rooms.first.half=1", "`first` does not exist"),
        ("roof=red", "roof: Extra inputs are not permitted"),
        ("pet.lives=many", "pet.lives: Input should be a valid integer"),
        ("rooms=0", "rooms: Input should be greater than 0"),
    ],
)
def test_set_is_checked_as_the_file_is(refused, override, reason):
    assert reason in refused("pet:\n  kind: cat\nrooms: 2\npets:\n- kind: cat\n", override)[0]


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        Home,
        pet=st.builds(Cat, lives=st.integers(1, 99)) | st.builds(Dog, tricks=st.tuples(st.text(max_size=9))),
        rooms=st.integers(2, 9),
    )
)
def test_what_is_written_as_yaml_is_read_back(tmp_path_factory, home):
    path = tmp_path_factory.mktemp("home") / "home.yaml"
    path.write_text(yaml.safe_dump(home.model_dump(mode="json")), encoding="utf-8")
    assert load_settings(path, Home) == home


def test_plain_data_is_named_by_the_caller():
    with pytest.raises(SettingsError, match=r"^card.json: pet.lives: "):
        validate_settings({"pet": {"kind": "cat", "lives": 0}}, Home, "card.json")


def test_a_check_of_ours_speaks_in_its_own_words(refused):
    assert refused("pet: {kind: cat}\nrooms: 1\n")[0].endswith(": a cat needs 2 rooms, got 1")


SHIPPED = sorted(configs_folder().rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.relative_to(configs_folder()).as_posix() for path in SHIPPED])
def test_shipped_configurations_are_valid(path: Path):
    if path.parent.name == "batch":
        assert load_settings(path, BatchSettings).packages
        return
    experiment = load_settings(path, Experiment)
    channels = experiment.preparation.channels
    experiment.network.build(channels, experiment.task.network_channels(channels))
    assert Experiment.model_validate(experiment.resolved) == experiment


def test_a_list_with_a_wrong_item_is_not_called_empty(tmp_path):
    class Pack(Settings):
        dogs: tuple[Dog, ...] = Field(min_length=1)

    path = tmp_path / "pack.yaml"
    for text, said in (
        ("dogs: [{tricks: 3}]", "dogs.0.tricks: Input should be a valid tuple"),
        ("dogs: []", "at least 1"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=said) as caught:
            load_settings(path, Pack)
        assert len(str(caught.value).splitlines()) == 1
