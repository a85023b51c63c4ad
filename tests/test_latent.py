"""Latent spaces: whole images in, pictures out, in Python and on the command line."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pillow
from typer.testing import CliRunner

from medae.cli import app
from medae.errors import LimitExceeded, OutputError, UnfitImage, UnreadableImage, UsageError
from medae.image import Geometry, Image
from medae.latent import LatentSpace, decodings, embed, interpolate, sample, traverse, units
from medae.latent import space as space_module
from medae.latent.sheet import Row, sheet
from medae.latent.walks import _between
from medae.metrics.book import Usage
from medae.networks import Codes
from medae.networks.prior import PriorSettings
from medae.package import ModelPackage
from medae.preparation import Preparation
from medae.tasks import Anomaly, Segmentation
from medae.tiles import plan_tiles
from tests.conftest import tilted_affine, untrained_package

NETWORKS: dict[str, dict[str, Any]] = {
    "code": {"kind": "conv_autoencoder", "features": (4, 6), "bottleneck": 3},
    "gaussian": {"kind": "vae", "features": (4, 6), "latent_channels": 3},
    "codes": {"kind": "vqvae", "features": (6, 8), "quantiser": {"kind": "ema", "codes": 8, "channels": 3}},
    "fsq": {"kind": "vqvae", "features": (6, 8), "quantiser": {"kind": "fsq", "levels": (3, 3)}},
    "flat": {"kind": "vae", "features": (4,), "latent_channels": 5, "size": (24, 24)},
}


def package(name: str, channels: int = 1, task: Any = None, **more: Any) -> ModelPackage:
    return untrained_package(task or Anomaly(), NETWORKS[name] | more, Preparation(channels=channels))


def picture(rows: int = 24, columns: int = 24, channels: int = 1, seed: int = 0) -> Image:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 255, (channels, 1, rows // 4 + 1, columns // 4 + 1)).repeat(4, 2).repeat(4, 3)
    return Image(smooth[:, :, :rows, :columns].astype(np.uint8), Geometry((1, rows, columns), np.eye(4), unit="px"))


def volume(*shape: int) -> Image:
    pixels = np.random.default_rng(1).integers(0, 255, (1, *shape)).astype(np.uint8)
    return Image(pixels, Geometry(shape, tilted_affine()))  # type: ignore[arg-type]


def png(file: Any, tmp_path: Path) -> Pillow.Image:
    (tmp_path / file.name).write_bytes(file.data)
    with Pillow.open(tmp_path / file.name) as shown:
        return shown.copy()


# ---- into the space


@pytest.mark.parametrize("name", ["code", "gaussian", "codes", "fsq"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_large_image_is_encoded_in_tiles_as_it_is_whole(name: str, dims: int, monkeypatch: Any) -> None:
    space = LatentSpace(package(name, dims=dims), "cpu")
    image = volume(3, 150, 61) if dims == 2 else volume(13, 150, 17)
    whole = space.encode(image)
    cut = partial(plan_tiles, tile_voxels=3000 if dims == 2 else 20_000)
    assert len(cut(image.geometry.shape, space.card.receptive_field).tiles) > (3 if dims == 2 else 1)
    monkeypatch.setattr(space_module, "plan_tiles", cut)
    tiled = space.encode(image)
    assert type(tiled) is type(whole)
    z = whole.point().z
    assert z.shape == ((3, 3, 38, 16) if dims == 2 else (1, 3, 4, 38, 5)) or name == "fsq"
    torch.testing.assert_close(tiled.point().z, z, rtol=1e-4, atol=1e-5)
    if isinstance(whole, Codes) and isinstance(tiled, Codes):
        assert torch.equal(whole.indices, tiled.indices)


@pytest.mark.parametrize("score", [{"kind": "perceptual"}, {"kind": "restoration"}])
def test_scores_that_look_farther_do_not_change_the_latent(score: dict[str, Any], monkeypatch: Any) -> None:
    plain = package("gaussian", features=(4,))
    scored = package("gaussian", task=Anomaly.model_validate({"kind": "anomaly", "scores": [score]}), features=(4,))
    image = picture(70, 61)
    monkeypatch.setattr(space_module, "plan_tiles", partial(plan_tiles, tile_voxels=2000))
    z = LatentSpace(scored, "cpu").encode(image).point().z
    assert z.shape == (1, 3, 35, 31)
    assert torch.equal(z, LatentSpace(plain, "cpu").encode(image).point().z)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_decoding_the_latent_is_what_the_network_answers(name: str) -> None:
    space = LatentSpace(package(name), "cpu")
    image = picture()
    x = torch.from_numpy(image.pixels[:, 0].astype(np.float32) / 255)[None]
    with torch.no_grad():
        expected = space.network(x).numpy()
    assert np.allclose(space.decode(space.encode(image)), expected, atol=1e-6)


def test_a_norm_that_sees_the_whole_image_has_a_largest_one(monkeypatch: Any) -> None:
    space = LatentSpace(package("gaussian", norm="instance"), "cpu")
    space.encode(picture())
    monkeypatch.setattr(space_module, "plan_tiles", partial(plan_tiles, tile_voxels=400))
    with pytest.raises(LimitExceeded, match="sees the whole image"):
        space.encode(picture(100, 100))


def test_what_has_no_latent_is_refused() -> None:
    unet = untrained_package(Anomaly(), {"kind": "unet", "features": (4, 8), "strides": (2,)})
    with pytest.raises(UsageError, match="unet does not go through a latent code"):
        LatentSpace(unet)


def test_use_of_a_book_is_counted() -> None:
    usage = Usage.of([torch.tensor([[0, 0], [1, 1]]), torch.tensor([3, 3, 3, 3])], 6)
    assert usage.counts.tolist() == [2, 2, 0, 4, 0, 0] and usage.used == 3
    assert usage.bits == pytest.approx(1.5)
    assert usage.summary == {"entries": 6, "used": 3, "perplexity": round(2**1.5, 2), "counted": 8}
    assert Usage.of([torch.arange(6)], 6).perplexity == pytest.approx(6)


# ---- embedding


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_collection_becomes_a_table(name: str, tmp_path: Path) -> None:
    space = LatentSpace(package(name), "cpu")
    images = {f"image-{seed}": picture(seed=seed) for seed in range(3)}

    def broken() -> Image:
        raise UnreadableImage("half of it is missing")

    reads = [(key, partial(lambda image: image, image)) for key, image in images.items()]
    found = embed(space, [reads[0], ("bad", broken), *reads[1:]])
    (tmp_path / "embedding.parquet").write_bytes(found.parquet(space.package.digest).data)
    table = pq.read_table(tmp_path / "embedding.parquet")
    assert table.column_names == ["id", "vector"]
    assert table["id"].to_pylist() == list(images)
    assert table.schema.metadata[b"medae.package"].decode() == space.package.digest
    for row, image in zip(table["vector"].to_pylist(), images.values(), strict=True):
        z = space.encode(image).point().z
        assert np.allclose(row, z.mean((0, *range(2, z.ndim))).numpy())
    assert found.failed == [("bad", "half of it is missing")]
    assert (found.usage is not None) == (space.settings.latent == "codes")
    if found.usage is not None:
        assert int(found.usage.counts.sum()) == 3 * 6 * 6


# ---- walks


def test_a_line_and_a_great_circle() -> None:
    first, second = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for method in ("linear", "spherical"):
        torch.testing.assert_close(_between(first, second, 0, method), first)
        torch.testing.assert_close(_between(first, second, 1, method), second)
        torch.testing.assert_close(_between(first, first, 0.3, method), first)
    torch.testing.assert_close(_between(first, second, 0.25, "linear"), 0.75 * first + 0.25 * second)
    unit = second / second.norm() * first.norm()
    middle = _between(first, unit, 0.5, "spherical")
    torch.testing.assert_close(middle.norm(), first.norm())
    torch.testing.assert_close((middle * first).sum(), (middle * unit).sum())
    assert torch.equal(_between(first, -first, 0.5, "spherical"), torch.zeros_like(first))


@pytest.mark.parametrize("name", ["code", "gaussian", "codes", "fsq", "flat"])
def test_interpolation_begins_and_ends_at_the_reconstructions(name: str, tmp_path: Path) -> None:
    space = LatentSpace(package(name), "cpu")
    one, other = picture(), picture(seed=4)
    page = np.asarray(png(interpolate(space, one, other, steps=3), tmp_path))
    cell = 96  # four times 24
    left = page.shape[1] - 5 * (cell + 6)
    cells = [page[-cell - 6 : -6, left + at * (cell + 6) :][:, :cell] for at in range(5)]
    assert np.array_equal(cells[0][::4, ::4, 0], one.pixels[0, 0]) and np.array_equal(
        cells[4][::4, ::4, 0], other.pixels[0, 0]
    )
    for shown, image in ((cells[1], one), (cells[3], other)):
        expected = np.rint(space.decode(space.encode(image))[0, 0].clip(0, 1) * 255)
        assert np.abs(shown[::4, ::4, 0] - expected).max() <= 1


def test_two_sizes_cannot_be_walked_between() -> None:
    with pytest.raises(UnfitImage, match="1 x 24 x 24 and 1 x 24 x 20"):
        interpolate(LatentSpace(package("code"), "cpu"), picture(), picture(24, 20))


@pytest.mark.parametrize("name", ["code", "gaussian", "flat"])
def test_a_traversal_has_a_row_a_dimension(name: str, tmp_path: Path) -> None:
    space = LatentSpace(package(name, channels=3), "cpu")
    image = picture(channels=3)
    whole = png(traverse(space, image, steps=5), tmp_path)
    two = png(traverse(space, image, dimensions=(2, 0), steps=5), tmp_path)
    assert whole.mode == "RGB" and whole.height > two.height
    with pytest.raises(UsageError, match="dimensions 0 to"):
        traverse(space, image, dimensions=(99,))


def test_draws_follow_the_seed() -> None:
    space = LatentSpace(package("gaussian"), "cpu")
    for draw in (partial(decodings, space, picture()), partial(sample, space, count=3, size=(24, 24))):
        assert draw(seed=1).data == draw(seed=1).data != draw(seed=2).data


def test_samples_have_their_number_and_size(tmp_path: Path) -> None:
    assert png(sample(LatentSpace(package("flat"), "cpu"), count=5), tmp_path).height > 2 * 96
    small = png(sample(LatentSpace(package("gaussian", dims=3), "cpu"), count=2, size=(4, 8, 12)), tmp_path)
    assert small.width >= 2 * 96


def with_untrained_prior(name: str) -> ModelPackage:
    made = package(name)
    settings = PriorSettings(width=8, depth=1, heads=1, grid=(2, 3))
    prior = settings.build(9 if name == "fsq" else 8, (2, 3))
    return made.retold({key: value.numpy() for key, value in prior.state_dict().items()}, prior=settings.model_dump())


@pytest.mark.parametrize("name", ["codes", "fsq"])
def test_codes_are_drawn_by_their_prior(name: str, tmp_path: Path) -> None:
    space = LatentSpace(with_untrained_prior(name), "cpu")
    assert sample(space, count=2, seed=3).data == sample(space, count=2, seed=3).data
    page = png(sample(space, count=2, seed=3), tmp_path)
    assert page.height >= 8 * 8 and page.width >= 2 * 12 * 8


def test_what_makes_no_sense_is_refused() -> None:
    codes, code = LatentSpace(package("codes"), "cpu"), LatentSpace(package("code"), "cpu")
    with pytest.raises(UsageError, match="no directions"):
        traverse(codes, picture())
    for space in (codes, code):
        with pytest.raises(UsageError, match="one decoding"):
            decodings(space, picture())
    with pytest.raises(UsageError, match="no distribution"):
        sample(code)
    with pytest.raises(UsageError, match="no prior over its codes; make one with `medae latent prior`"):
        sample(codes)
    with pytest.raises(UsageError, match="give one"):
        sample(LatentSpace(package("gaussian"), "cpu"))
    labels = Segmentation.model_validate({"labels": [{"name": "nucleus", "colour": (255, 0, 0)}]})
    with pytest.raises(UsageError, match="decodes to labels"):
        interpolate(LatentSpace(package("code", task=labels), "cpu"), picture(), picture())
    segnet = untrained_package(Anomaly(), {"kind": "segnet", "features": (4,), "convolutions": (1,)})
    with pytest.raises(UsageError, match="where each maximum was"):
        interpolate(LatentSpace(segnet, "cpu"), picture(), picture())


def test_sizes_and_steps_that_make_no_sense_are_refused() -> None:
    space = LatentSpace(package("gaussian"), "cpu")
    with pytest.raises(UsageError, match="prior's grid, 2 x 3 codes: leave the size out"):
        sample(LatentSpace(with_untrained_prior("codes"), "cpu"), size=(40, 40))
    with pytest.raises(LimitExceeded, match="1000000 x 1000000 is larger than 2097152 voxels"):
        sample(space, size=(1_000_000, 1_000_000))
    for wrong in (np.nan, np.inf, 0, -1):
        with pytest.raises(UsageError, match="temperature is a number above 0"):
            sample(space, size=(8, 8), temperature=wrong)
        with pytest.raises(UsageError, match="standard deviations above 0"):
            traverse(space, picture(), span=wrong)


# ---- units


@pytest.mark.parametrize("name", list(NETWORKS))
def test_units_show_where_they_fire_most(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    space = LatentSpace(package(name), "cpu")
    images = [picture(40, 32, seed=seed) if name != "flat" else picture(seed=seed) for seed in range(5)]
    rows: list[Row] = []
    monkeypatch.setattr(
        "medae.latent.firing.sheet", lambda file, title, found: rows.extend(found) or sheet(file, title, found)
    )
    file = units(space, [(str(n), partial(lambda image: image, image)) for n, image in enumerate(images)], most=3)
    assert png(file, tmp_path).mode == "RGB"
    assert rows
    for row in rows:
        unit = int(row.label.split()[1])
        shown = [float(caption) for caption in row.captions]
        assert shown == sorted(shown, reverse=True) and len(shown) == len(row.pictures) <= 3
        if space.settings.latent != "codes":
            highest = sorted((float(space.encode(image).point().z[:, unit].max()) for image in images), reverse=True)
            assert np.allclose(shown, highest[:3], atol=0.006)


def test_the_part_that_is_shown_is_where_the_unit_fired() -> None:
    from medae.latent.firing import _around, _framed

    assert _around(0, 12, 4, 40) == slice(0, 12)
    assert _around(5, 12, 4, 40) == slice(16, 28)  # the middle of the place is at 22
    assert _around(9, 12, 4, 40) == slice(28, 40)
    assert _around(2, 50, 4, 40) == slice(0, 40)
    framed = _framed(np.zeros((12, 12, 3), np.uint8), 4, 8, 4)[..., 0]
    assert framed[3, 7:].all() and framed[8, 7:].all() and framed[3:9, 7].all()
    assert framed.sum() == 255 * (5 + 5 + 4)  # nothing inside, nothing beyond the edge


# ---- the command line


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages and pictures on disk."""
    root = tmp_path_factory.mktemp("shelf")
    for name in ("gaussian", "code"):
        package(name).save(root / name)
    with_untrained_prior("codes").save(root / "codes")
    (root / "images").mkdir()
    for seed in range(3):
        Pillow.fromarray(picture(seed=seed).pixels[0, 0]).save(root / "images" / f"p{seed}.png")
    (root / "bad").mkdir()
    (root / "bad" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return root


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["latent", *map(str, arguments)])


@pytest.mark.parametrize(
    ("model", "words", "file"),
    [
        ("gaussian", "interpolate {m} {i}/p0.png {i}/p1.png --method spherical", "interpolation.png"),
        ("codes", "interpolate {m} {i}/p0.png {i}/p1.png", "interpolation.png"),
        ("gaussian", "traverse {m} {i}/p0.png --dimension 1", "traversal.png"),
        ("gaussian", "decodings {m} {i}/p0.png --count 3 --seed 4", "decodings.png"),
        ("gaussian", "sample {m} --size 16x24 --count 3", "samples.png"),
        ("codes", "sample {m} --count 3 --temperature 0.5", "samples.png"),
        ("code", "units {m} {i} --count 2 --most 2", "units.png"),
    ],
)
def test_each_command_leaves_its_picture_and_its_record(
    model: str, words: str, file: str, shelf: Path, tmp_path: Path
) -> None:
    line = words.format(m=shelf / model, i=shelf / "images").split()
    done = call(*line, "--out", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    with Pillow.open(tmp_path / "out" / file) as shown:
        assert shown.mode == "RGB"
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["command"] == f"latent {line[0]}" and run["status"] == "done"
    assert run["digests"]["package"] == ModelPackage.load(shelf / model).digest


def test_embedding_a_folder(shelf: Path, tmp_path: Path) -> None:
    done = call("embed", shelf / "codes", shelf / "images", shelf / "bad", "--out", tmp_path)
    assert done.exit_code == 3, done.output
    assert pq.read_table(tmp_path / "embedding.parquet")["id"].to_pylist() == ["p0", "p1", "p2"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert [(case["id"], case["status"]) for case in run["cases"]] == [
        ("p0", "done"), ("p1", "done"), ("p2", "done"), ("broken", "failed"),
    ]  # fmt: skip
    assert run["codes"]["counted"] == 3 * 36
    said = json.loads(done.stdout[done.stdout.index("{") :])
    assert said["images"] == 3 and said["dimensions"] == 3 and said["codes"]["entries"] == 8


def test_a_prior_that_could_not_be_kept_is_not_trained(shelf: Path, tmp_path: Path, monkeypatch: Any) -> None:
    model = ModelPackage.load(shelf / "codes")
    told = {"name": "a", "data": {"kind": "sample", "name": "denoise-tissue"}, "network": NETWORKS["codes"]}
    told |= {"task": {"kind": "anomaly"}, "objectives": [{"kind": "mse"}, {"kind": "commitment"}]}
    card = model.card.model_copy(update={"experiment": told})
    ModelPackage.seal(card, model.weights, model.prior).save(tmp_path / "package")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("medae.training.prior.with_prior", lambda *args, **more: pytest.fail("it was trained"))
    (tmp_path / "taken/package").mkdir(parents=True)
    (tmp_path / "taken/package/letter.txt").write_text("mine")
    for out in ("file", "taken"):
        done = call("prior", tmp_path / "package", "--out", tmp_path / out)
        assert isinstance(done.exception, OutputError), done.output


def test_wrong_calls_are_refused(shelf: Path, tmp_path: Path) -> None:
    assert call("sample", shelf / "gaussian", "--size", "16", "--out", tmp_path).exit_code == 2
    assert isinstance(call("prior", shelf / "gaussian", "--out", tmp_path).exception, UsageError)
    assert isinstance(call("sample", shelf / "code", "--out", tmp_path).exception, UsageError)
    assert call("interpolate", shelf / "code", shelf / "images", shelf / "images", "--out", tmp_path).exit_code == 2
