"""With a key of the site, no id of a case or of a patient is in anything that a run leaves, but a batch's own plan."""

import logging
from pathlib import Path

import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from medae.batch import results
from medae.batch.folder import Folder
from medae.cli import app
from medae.pseudonyms import Pseudonyms
from tests.batch_parts import write_pictures, write_series
from tests.service_parts import client_of, recorded_log, segmenter

NAME = "MUELLER"
KEY = b"the secret key of one site"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A model, a key, and a folder whose pictures and series are named after a patient; one file is broken."""
    segmenter().save(tmp_path / "model")
    (tmp_path / "key").write_bytes(KEY)
    pictures = write_pictures(tmp_path / "in")
    for path in pictures.glob("*.png"):
        path.rename(path.with_name(f"{NAME}-{path.name}"))
    (pictures / f"{NAME}-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for path in write_series(pictures / f"{NAME}-scan", [0.0, 2.0, 4.0]):
        dataset = dcmread(path)
        dataset.PatientName = dataset.PatientID = NAME
        dataset.save_as(path)
    return tmp_path


def medae(site: Path, *words: str) -> str:
    done = CliRunner().invoke(app, [word.replace("SITE", str(site)) for word in words])
    assert done.exit_code in (0, 3), done.output
    return done.output


def left(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def assert_without_name(files: dict[str, bytes]) -> None:
    assert files
    for name, data in files.items():
        assert NAME not in name and NAME.encode() not in data, name


def test_predict(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    words = ("--id-key", "SITE/key", "--dicom", "deidentify", "--dicom", "report")
    said = medae(site, "predict", "SITE/model", "SITE/in", "--out", "SITE/out", *words)
    files = left(site / "out")
    assert_without_name(files)
    assert NAME not in said and NAME not in caplog.text
    assert f"{Pseudonyms(KEY).name(f'{NAME}-a')}_labels.png" in files
    assert sum(name.endswith(".dcm") for name in files) == 2
    # so is the same case called the same again, and otherwise without the key
    medae(site, "predict", "SITE/model", "SITE/in", "--out", "SITE/again", *words[:2])
    assert {name for name in left(site / "again") if name.endswith(".png")} <= files.keys()
    assert any(NAME in name for name in left(site / "in"))


def test_a_batch(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cases = site / "cases.csv"
    rows = [f"{NAME}-{case},SITE/in/{NAME}-{case}.png,{NAME}".replace("SITE", str(site)) for case in "abc"]
    cases.write_text("\n".join(["id,image,patient", *rows, f"{NAME}-x,{site}/in/{NAME}-broken.png,{NAME}", ""]))
    words = ("--id-key", "SITE/key", "--workers", "0")
    said = medae(site, "batch", "run", "SITE/model", "SITE/cases.csv", "--out", "SITE/out", *words)
    said += medae(site, "batch", "status", "SITE/out")
    medae(site, "batch", "export", "SITE/out", "--csv", "SITE/out/table.csv")
    plan = Folder(site / "out").plan.name
    assert_without_name({name: data for name, data in left(site / "out").items() if Path(name).name != plan})
    assert NAME not in said and NAME not in caplog.text
    table = results.read(Folder(site / "out")).to_table().to_pylist()
    assert {row["patient"] for row in table} == {Pseudonyms(KEY).name(NAME)}
    assert {row["id"] for row in table} == {Pseudonyms(KEY).name(f"{NAME}-{case}") for case in "abcx"}


def test_the_service(site: Path) -> None:
    (folder,) = (site / "in").glob("*scan")
    form = [("file", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    with recorded_log() as log:
        client = client_of(segmenter(), id_key=site / "key")
        answer = client.post("/v1/segment?dicom_deidentify=true&dicom_report=true", files=form)
        assert answer.status_code == 200 and NAME.encode() not in answer.content
        refused = client_of(segmenter()).post("/v1/segment?dicom_deidentify=true", files=form)
        assert refused.status_code == 400 and NAME not in refused.text
    assert NAME not in log.getvalue()
