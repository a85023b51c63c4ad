"""The examples of docs/batch.md do what they say: their own command lines, run here with what their schedulers set.

SLURM, Kubernetes and systemd are not here; what they would run is, with their environment variables, on small inputs.
"""

import configparser
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from medae import io
from medae.batch.run import run
from medae.batch.settings import BatchSettings
from medae.batch.state import state
from medae.cli import app
from medae.image import Image
from tests.batch_parts import Seen, everything, segmenter
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs/batch.md"
COUNT = 6


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What the examples find: a model, a list of pictures (one is damaged), and medae on the PATH."""
    segmenter().save(tmp_path / "models/nuclei")
    (tmp_path / "archive/incoming").mkdir(parents=True)
    rng = np.random.default_rng(2)
    for number in range(COUNT):
        path = tmp_path / f"archive/incoming/p{number}.png"
        io.write_image(Image.from_picture(rng.integers(0, 255, (20, 20), np.uint8)), path)
    (tmp_path / "archive/incoming/p3.png").write_bytes(b"no picture")
    rows = "".join(f"p{number},incoming/p{number}.png\n" for number in range(COUNT))
    (tmp_path / "archive/cases.csv").write_text(f"id,path\n{rows}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/models").symlink_to(tmp_path / "models")
    (tmp_path / "data/cases.csv").write_text(f"id,path\n{rows.replace('incoming', '../archive/incoming')}")
    (tmp_path / "bin").mkdir()
    medae = tmp_path / "bin/medae"
    medae.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$MEDAE_TEST_WORDS"; exit 3\n')
    medae.chmod(0o755)
    return tmp_path


def at(site: Path, text: str) -> str:
    """An example's absolute paths, below the test's folder."""
    return re.sub(r"(?<![\w.])/(models|archive|results|data|etc/medae|opt/medae/bin)\b", rf"{site}/\1", text).replace(
        "opt/medae/bin", "bin"
    )


def started(site: Path, script: str, **variables: str) -> tuple[int, int]:
    """What a shell makes of a script, with a medae that only notes its words and says that some cases failed; and the
    exit code of these words, in this process since a batch needs seconds to start: without a promise of memory, which
    only workers keep."""
    words = site / "words"
    given = {"PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}", "MEDAE_TEST_WORDS": str(words)}
    ended = subprocess.run(["sh", "-c", script], env=os.environ | given | variables, check=False).returncode
    said = re.sub(r"^--max-ram\n.*\n", "", words.read_text(), flags=re.MULTILINE).splitlines()
    result = CliRunner().invoke(app, [*said, "--workers", "0", "--device", "cpu"])
    return ended, result.exit_code


def whole(site: Path, inputs: str) -> Any:
    given: dict[str, Any] = {"packages": [str(site / "models/nuclei")], "inputs": [inputs], "out": site / "whole"}
    run(BatchSettings.model_validate(given | {"workers": 0, "device": "cpu"}), Seen())
    return everything(site / "whole")


def test_the_slurm_array_makes_one_batch(site: Path) -> None:
    (script,) = blocks(PAGE, "bash")
    (first, last) = (int(number) for number in re.findall(r"--array=(\d+)-(\d+)", script)[0])
    assert (first, last) == (0, 15), "shards count from 0"
    tasks = 3
    ended = [
        started(site, at(site, script), SLURM_ARRAY_TASK_ID=str(number), SLURM_ARRAY_TASK_COUNT=str(tasks))[1]
        for number in range(tasks)
    ]
    assert sorted(ended) == [0, 0, 3], "the shard with the damaged picture says so, and no other"
    assert everything(site / "results/night") == whole(site, str(site / "archive/cases.csv"))


def test_the_kubernetes_job_makes_one_batch_and_its_pods_succeed(site: Path) -> None:
    (job,) = (data for block in blocks(PAGE, "yaml") if (data := yaml.safe_load(block)).get("kind") == "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (script,) = container["args"]
    named = {path for path in re.findall(r"\s(/[\w./]+)", script)}
    assert set(mounts.values()) <= volumes and all(path.startswith(tuple(mounts)) for path in named), named
    parts = f"/{spec['completions']}"
    assert f"$JOB_COMPLETION_INDEX{parts}" in script, "there are as many shards as completions"
    script = at(site, script).replace(f"INDEX{parts}", "INDEX/2")
    ended = [started(site, script, JOB_COMPLETION_INDEX=str(number)) for number in range(2)]
    assert [pod for pod, _ in ended] == [0, 0] and sorted(code for _, code in ended) == [0, 3]
    assert state(site / "data/night")["left"] == 0
    assert everything(site / "data/night") == whole(site, str(site / "archive/cases.csv"))


def test_the_timer_starts_a_batch_that_takes_what_is_new(site: Path) -> None:
    timer, service = (configparser.ConfigParser() for _ in range(2))
    for unit, text in zip((timer, service), blocks(PAGE, "ini"), strict=True):
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
    assert timer["Timer"]["Persistent"] == "true"
    allowed = {0, int(service["Service"]["SuccessExitStatus"])}
    (night,) = (block for block in blocks(PAGE, "yaml") if "inputs:" in block)
    models = night.replace(", /models/anomaly-tissue", "")
    (site / "etc/medae").mkdir(parents=True)
    (site / "etc/medae/nightly.yaml").write_text(at(site, models).replace("max_ram: 8G\n", ""))
    command = at(site, service["Service"]["ExecStart"])
    assert started(site, command)[1] in allowed and state(site / "results/nightly")["done"] == COUNT - 1
    later = Image.from_picture(np.full((20, 20), 7, np.uint8))
    io.write_image(later, site / "archive/incoming/p9.png")
    assert started(site, command)[1] in allowed and state(site / "results/nightly")["done"] == COUNT
    assert everything(site / "results/nightly") == whole(site, str(site / "archive/incoming"))
