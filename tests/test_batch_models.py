"""What the models of a batch say in its table: gates, vectors of autoencoders, several models in one pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medae import io
from medae.batch import work
from medae.batch.merge import merge
from medae.batch.run import recorded, run
from medae.batch.settings import BatchSettings
from medae.batch.state import state
from medae.cli import app
from medae.errors import SettingsError, UsageError
from medae.experiment import Experiment
from medae.image import Image
from medae.io import read_image
from medae.latent import LatentSpace
from medae.package import load
from medae.predictor import Predictor
from medae.settings import validate_settings
from medae.tasks import Anomaly, Restoration
from medae.training import train
from medae.verdict import GateLimits
from tests.batch_parts import Seen, everything, segmenter, table
from tests.conftest import untrained_package
from tests.training_toys import disc_pictures, segmentation

COUNT = 6
Ask = Callable[..., BatchSettings]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    segmenter().save(folder / "segmenter")
    untrained_package(Anomaly(), {"kind": "vae", "dims": 2, "features": [4, 6]}).save(folder / "vae")
    untrained_package(Restoration(), {"kind": "dncnn", "depth": 2, "features": 4}).save(folder / "denoiser")
    return folder


@pytest.fixture
def ask(packages: Path, tmp_path: Path) -> Ask:
    """Settings of a batch of pictures of odd sizes, one of them damaged."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(8)
    for number in range(COUNT):
        pixels = rng.integers(0, 30 + 25 * number, (17 + number, 32 - number), dtype=np.uint8)
        io.write_image(Image.from_picture(pixels), folder / f"p{number}.png")
    (folder / "p4.png").write_bytes(b"no picture")

    def ask(out: str = "out", *, models: tuple[str, ...] = (), embed: tuple[str, ...] = (), **given: Any) -> Any:
        named = {"packages": [str(packages / name) for name in models], "embed": [str(packages / n) for n in embed]}
        fixed = {"inputs": (str(folder),), "workers": 0, "batch": 4, "device": "cpu", "out": tmp_path / out}
        return BatchSettings.model_validate(named | fixed | given)

    return ask


def test_an_autoencoder_embeds_in_the_pass_of_the_others(
    ask: Ask, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decoded = work.read_image, []
    monkeypatch.setattr(work, "read_image", lambda *given, **named: decoded.append(1) or read(*given, **named))
    counts = run(ask(models=("segmenter", "vae"), embed=("vae",), report=False), Seen())
    assert (counts.done, counts.failed, len(decoded)) == (COUNT - 1, 1, COUNT), "each is decoded once for all three"
    rows = table(tmp_path / "out")
    assert {row["package"] for row in rows} == {"untrained", "untrained-0.1", "untrained-embedding"}
    vectors = {row["id"]: row["vector"] for row in rows if row["package"].endswith("-embedding")}
    assert vectors.pop("p4") is None and len(vectors) == COUNT - 1
    assert not any(row["vector"] for row in rows if not row["package"].endswith("-embedding"))
    space = LatentSpace(load(packages / "vae"), "cpu")
    for name, vector in vectors.items():
        expected = space.embed(read(tmp_path / "in" / f"{name}.png"))
        np.testing.assert_array_equal(np.asarray(vector, np.float32), expected)


def test_vectors_survive_interruptions_processes_and_merging(ask: Ask, tmp_path: Path) -> None:
    run(ask("whole", embed=("vae",)), Seen())
    with pytest.raises(KeyboardInterrupt):
        run(ask(embed=("vae",)), Seen(3))
    run(recorded(tmp_path / "out"), seen := Seen())
    assert len(seen.ids) < COUNT
    run(ask("workers", embed=("vae",), workers=2), Seen())
    for number in (0, 1):
        run(ask(f"part{number}", embed=("vae",), shard=f"{number}/2"), Seen())
    merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    for out in ("out", "workers", "merged"):
        assert everything(tmp_path / out) == everything(tmp_path / "whole")
    assert not (tmp_path / "whole" / "answers").exists()
    assert "5 vectors of" in (tmp_path / "whole" / "report.html").read_text()


def test_only_what_has_a_latent_embeds(ask: Ask) -> None:
    with pytest.raises(UsageError, match="does not go through a latent code"):
        run(ask(embed=("denoiser",)), Seen())
    with pytest.raises(UsageError, match="given twice"):
        run(ask(embed=("vae", "vae", "vae", "vae")), Seen())
    with pytest.raises(SettingsError, match="at least 1"):
        validate_settings({"inputs": ["i"], "out": "o"}, BatchSettings, "x")


def test_the_command_line_embeds(ask: Ask, packages: Path, tmp_path: Path) -> None:
    given = ask(embed=("vae",))
    words = [
        "batch",
        "run",
        "--embed",
        given.embed[0],
        given.inputs[0],
        "--out",
        str(tmp_path / "cli"),
        "--workers",
        "0",
    ]
    assert CliRunner().invoke(app, words).exit_code == 3
    run(given, Seen())
    assert everything(tmp_path / "cli") == everything(tmp_path / "out")
    exported = ["batch", "export", str(tmp_path / "cli"), "--csv", str(tmp_path / "x.csv")]
    assert CliRunner().invoke(app, exported).exit_code == 0
    assert len((tmp_path / "x.csv").read_text().splitlines()) == COUNT + 1


def test_the_command_line_tries_a_shard_again_and_not_the_others(ask: Ask, tmp_path: Path) -> None:
    number = next(n for n in range(3) if "p4" in _of_shard(ask, tmp_path, n))
    said = state(tmp_path / f"part{number}")
    io.write_image(Image.from_picture(np.zeros((21, 28), np.uint8)), tmp_path / "in" / "p4.png")
    words = ["batch", "retry", str(tmp_path / f"part{number}"), "--shard", f"{number}/3"]
    assert CliRunner().invoke(app, words).exit_code == 0
    after = state(tmp_path / f"part{number}")
    assert (after["done"], after["failed"], after["left"]) == (said["done"] + 1, 0, said["left"])
    merged = CliRunner().invoke(app, ["batch", "merge", str(tmp_path / f"part{number}"), "--out", str(tmp_path / "m")])
    assert merged.exit_code == 0 and f"{after['done']} done" in merged.output


def _of_shard(ask: Ask, tmp_path: Path, number: int) -> list[str]:
    """The ids that a shard answered, into a folder of its own."""
    run(ask(f"part{number}", models=("segmenter",), shard=f"{number}/3", report=False), seen := Seen())
    return seen.ids


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a segmentation with a gate and a model of shapes; pictures of its kind, one inverted, one without anything."""
    root = disc_pictures(tmp_path_factory.mktemp("discs"), 170)
    gate = {"steps": 40, "features": [4], "latent_channels": 2}
    train(Experiment.model_validate(segmentation(root).resolved | {"gate": gate}), root / "run", progress=False)
    (root / "in").mkdir()
    for number, path in enumerate(sorted((root / "images").glob("*.png"))[:6]):
        image = read_image(path)
        pixels = {1: 255 - image.pixels, 4: np.full_like(image.pixels, 90)}.get(number, image.pixels)
        io.write_image(image.with_pixels(pixels), root / "in" / f"p{number}.png")
    return root


def test_what_the_gate_says_stands_in_the_table(gated: Path, tmp_path: Path) -> None:
    limits = GateLimits(review=0.3, reject=0.02)
    given: dict[str, Any] = {"packages": [str(gated / "run/package")], "inputs": [str(gated / "in")], "gate": limits}
    run(BatchSettings.model_validate(given | {"out": tmp_path / "a", "workers": 0, "device": "cpu"}), Seen())
    rows = table(tmp_path / "a")
    predictor = Predictor(load(gated / "run/package"), device="cpu", limits=limits)
    for row in rows:
        verdict = predictor(read_image(gated / "in" / f"{row['id']}.png")).gate
        assert verdict is not None
        said = (verdict.verdict, verdict.percentile, list(verdict.reasons))
        assert (row["gate"], row["gate_percentile"], row["gate_reasons"]) == said
    assert rows[4]["gate"] == "reject" and rows[4]["gate_reasons"] and len({row["gate"] for row in rows}) > 1
    page = (tmp_path / "a" / "report.html").read_text()
    assert "reject" in page
    run(BatchSettings.model_validate(given | {"out": tmp_path / "b", "workers": 2, "device": "cpu"}), Seen())
    assert everything(tmp_path / "b") == everything(tmp_path / "a")
    with pytest.raises(UsageError, match="with other settings"):
        run(BatchSettings.model_validate(given | {"out": tmp_path / "a", "workers": 0, "gate": GateLimits()}), Seen())
