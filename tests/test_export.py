"""`medae export --to bento`, and `bentoml build` of the repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from medae.calibration import Calibration
from medae.errors import PackageError, UnknownModel, UsageError
from medae.export import _tag, _version, export
from medae.package import ModelPackage, load
from tests.service_parts import denoiser, named, png, scorer, segmenter
from tests.test_service_process import Running, alive, free_port, stop, wait_for

ROOT = Path(__file__).resolve().parents[1]


def medae(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BENTOML_HOME": str(home), "HOME": str(home)}
    command = [sys.executable, "-m", "medae", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=home)


def test_a_package_in_bentomls_store_is_the_same_package(tmp_path: Path) -> None:
    package = scorer()
    scores = Calibration.from_scores({"l2_mean": np.linspace(0, 1, 500).tolist()}, package_digest=package.digest)
    package.calibrated(scores).save(tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("of a patient")
    first = medae(tmp_path, "export", "p", "--to", "bento", "--name", "Brain Scorer")
    assert first.returncode == 0, first.stderr
    tag, _, folder = first.stdout.strip().partition(" ")
    digest = package.digest.removeprefix("sha256:")
    assert tag.startswith(f"brain-scorer:0.1-{digest[:12]}-")
    back = load(folder)
    assert back.digest == package.digest and back.calibration == scores
    for name in ("card.json", "weights.safetensors", "calibration.json"):
        assert (Path(folder) / name).read_bytes() == (tmp_path / "p" / name).read_bytes()
    assert not (Path(folder) / "notes.txt").exists()
    assert package.digest in (Path(folder) / "model.yaml").read_text()
    again = medae(tmp_path, "export", "p", "--to", "bento", "--name", "Brain Scorer")
    assert again.stdout == first.stdout, again.stderr


def test_gate_shape_and_prior_travel_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))

    def package(highest: float) -> ModelPackage:
        gate = scorer()
        scores = Calibration.from_scores({"l2_mean": [0.0] * 499 + [highest]}, package_digest=gate.digest)
        model = segmenter().retold({"rows.0": np.ones(3, np.float32)}, prior={"kind": "any"})
        return model.gated(gate.calibrated(scores), named(gate, "shape"))

    package(1).save(tmp_path / "p")
    (tmp_path / "p" / "gate" / "notes.txt").write_text("of a patient")
    first = export(str(tmp_path / "p"), "bento")
    back = load(first.folder)
    assert back.digest == package(1).digest
    assert back.gate is not None and back.gate.calibration is not None
    assert back.shape is not None and back.prior is not None
    assert not (first.folder / "gate" / "notes.txt").exists()
    package(2).save(tmp_path / "p")
    assert export(str(tmp_path / "p"), "bento").tag != first.tag, "another calibration of the gate is another package"


def test_calls_that_cannot_be(tmp_path: Path) -> None:
    segmenter().save(tmp_path / "p")
    with pytest.raises(UsageError, match=r"--to onnx: packages are exported to bento"):
        export(str(tmp_path / "p"), "onnx")
    with pytest.raises(UnknownModel):
        export(str(tmp_path / "none"), "bento")
    (tmp_path / "p" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(PackageError):
        export(str(tmp_path / "p"), "bento")


def test_tags_are_such_as_bentoml_takes() -> None:
    from bentoml import Tag

    for name in ("Nuclei, H&E (2-D)", "_x_", "a" * 99, "9", "Größe"):
        package = named(segmenter(), name)
        Tag(_tag(name), _version(package))
    with pytest.raises(UsageError, match="--name"):
        _tag("%%")


@pytest.mark.slow
def test_bentoml_builds_the_repository_and_serves_it(tmp_path: Path) -> None:
    denoiser().save(tmp_path / "denoiser")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MEDAE_SERVICE_CONFIG")
    }
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    environment |= nowhere | {
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    bentoml = [sys.executable, "-m", "bentoml"]
    built = subprocess.run([*bentoml, "build", "--output", "tag", str(ROOT)], capture_output=True, text=True,
                           env=environment, timeout=300)  # fmt: skip
    assert built.returncode == 0, built.stderr + built.stdout
    (folder,) = [path for path in (tmp_path / "bentoml" / "bentos" / "medae-service").iterdir() if path.is_dir()]
    packed = {str(path.relative_to(folder / "src")) for path in (folder / "src").rglob("*") if path.is_file()}
    assert {"services/bento.py", "medae/__init__.pyi", "medae/predictor.py", "services/medae_service/app.py"} <= packed
    assert not [name for name in packed if name.split("/")[0] in ("tests", "docs", ".git", "runs", "demo")]
    config = tmp_path / "service.json"
    config.write_text(json.dumps({"packages": [str(tmp_path / "denoiser")]}))
    environment["MEDAE_SERVICE_CONFIG"] = str(config)
    port = free_port()
    with open(tmp_path / "log.txt", "wb") as log:
        command = [*bentoml, "serve", "medae-service:latest", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
    running = Running(process, f"http://127.0.0.1:{port}", tmp_path / "log.txt", tmp_path)
    try:
        wait_for(lambda: alive(running), 90)
        response = httpx.post(f"{running.url}/v1/denoise", files={"file": png()}, timeout=30)
        assert response.status_code == 200, response.text
        assert response.headers["x-medae-model"] == f"denoiser@{denoiser().digest}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            stop(running)
