"""Settings: frozen, typo-proof configuration, read from YAML with errors that name file, line and field."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medae.errors import SettingsError


class Settings(BaseModel):
    """Base of everything that a YAML file or a model card can say."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


SettingsT = TypeVar("SettingsT", bound=Settings)
Loc = tuple[int | str, ...]
Lines = dict[Loc, int]


def load_settings(path: Path, kind: type[SettingsT], overrides: Sequence[str] = ()) -> SettingsT:
    """Read one YAML file as `kind`; `overrides` are `a.b=value` with the value in YAML.

    Raises SettingsError: one line per mistake, `file:line: field: reason`.
    """
    text = _read_text(path)
    data, lines = _parse(path, text)
    for override in overrides:
        _set(data, override)
    return validate_settings(data, kind, str(path), lines)


def changed(settings: SettingsT, overrides: Sequence[str]) -> SettingsT:
    """The same settings but for `a.b=value`. Raises SettingsError."""
    data = settings.model_dump(mode="json")
    for override in overrides:
        _set(data, override)
    return validate_settings(data, type(settings), "--set")


def validate_settings(data: Any, kind: type[SettingsT], name: str, lines: Lines | None = None) -> SettingsT:
    """Plain data as `kind`. Raises SettingsError, each mistake on a line that begins with `name`."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error, data, name, lines or {}))) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; give the path of a YAML configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as text ({type(error).__name__})") from None


def _parse(path: Path, text: str) -> tuple[dict[str, Any], Lines]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict) or node is None:
        raise SettingsError(f"{path}:1: expected `field: value` lines, got {type(data).__name__}")
    return data, dict(_lines(node, ()))


def _lines(node: yaml.Node, loc: Loc) -> Iterable[tuple[Loc, int]]:
    yield loc, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*loc, key.value), key.start_mark.line + 1
            # the key's own line is what a reader looks for, not the first line of the block below it
            yield from ((at, line) for at, line in _lines(value, (*loc, key.value)) if at != (*loc, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*loc, index))


def _set(data: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise SettingsError(f"--set {override}: expected field=value, such as training.steps=100")
    *parents, last = name.split(".")
    at: Any = data
    for part in parents:
        at = _child(at, part, override)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise SettingsError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(at, list):
        _child(at, last, override)
        at[int(last)] = parsed
    elif isinstance(at, dict):
        at[last] = parsed
    else:
        raise _missing(last, override)


def _child(at: Any, part: str, override: str) -> Any:
    if isinstance(at, list) and part.isdigit() and int(part) < len(at):
        return at[int(part)]
    if isinstance(at, dict):
        return at.setdefault(part, {})
    raise _missing(part, override)


def _missing(part: str, override: str) -> SettingsError:
    return SettingsError(f"--set {override}: `{part}` does not exist in the configuration")


def _explain(error: ValidationError, data: Any, name: str, lines: Lines) -> Iterable[str]:
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(_is_below(other["loc"], item["loc"]) for other in items):
            continue  # pydantic does not count the items that it has just called wrong
        loc = _in_data(item["loc"], data)
        line = next((lines[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in lines), None)
        place = name if line is None else f"{name}:{line}"
        field = ".".join(str(part) for part in loc)
        reason = item["msg"].removeprefix("Value error, ")  # pydantic's, before the sentences of our own checks
        yield f"{place}: {field}: {reason}" if field else f"{place}: {reason}"


def _is_below(loc: Loc, above: Loc) -> bool:
    return len(loc) > len(above) and loc[: len(above)] == above


def _in_data(loc: Loc, data: Any) -> Loc:
    """pydantic's location without the union tags that it inserts (`network.unet.levels`)."""
    kept: list[int | str] = []
    for index, part in enumerate(loc):
        is_tag = isinstance(data, Mapping) and part not in data and part == data.get("kind")
        if is_tag and index < len(loc) - 1:
            continue
        kept.append(part)
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(kept)
