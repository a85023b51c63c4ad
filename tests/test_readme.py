"""What the README shows works: its configurations are valid, its commands parse, its Python runs."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from medae.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("") for line in block.splitlines() if line and not line.startswith("#")]


def test_the_configurations_are_valid() -> None:
    whole, volumes = (yaml.safe_load(block) for block in blocks("yaml"))
    Experiment.model_validate(whole)
    Experiment.model_validate(whole | volumes)


@pytest.mark.parametrize(
    "changes",
    [
        "{task: {kind: restoration, corruption: {kind: gaussian, level: [0.02, 0.1]}}, network: {kind: dncnn},"
        " objectives: [{kind: mse}], data: {kind: folder, root: my-data, images: images/*.png}}",
        "{task: {kind: anomaly}, network: {kind: vae}, objectives: [{kind: mse}, {kind: kl}]}",
    ],
)
def test_the_other_tasks_need_no_more_than_is_said(changes: str) -> None:
    Experiment.model_validate(yaml.safe_load(blocks("yaml")[0]) | yaml.safe_load(changes))


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("medae ")])
def test_the_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and option exists; the work itself is not begun."""
    import typer

    from medae.cli import app

    name, *arguments = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert named and named <= targets


def test_the_picture_and_the_links_are_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
