"""The demo: the whole way, and nothing left behind when it is stopped on it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medae.demo import MODELS, QUESTIONS
from medae.io import read_image

QUICK = [sys.executable, "-m", "medae", "demo", "--quick", "--out"]


@pytest.mark.slow
def test_the_quick_demo_answers_every_question(tmp_path: Path) -> None:
    done = subprocess.run([*QUICK, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["input"] for row in rows] == [question.input for question in QUESTIONS]
    for row in rows:
        for name in row["files"].split():
            path = tmp_path / "answers" / name
            assert path.stat().st_size > 0
            if path.suffix == ".json":
                json.loads(path.read_text())
    sheet = read_image(tmp_path / "contact-sheet.png")
    assert sheet.channels == 3 and sheet.geometry.shape[1] > 1000
    for name in MODELS:
        assert (tmp_path / "evaluation" / name / "metrics.json").exists()
    again = subprocess.run([*QUICK, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, "a second run keeps the models of the first"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen([*QUICK, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: set[psutil.Process] = set()
    until = time.monotonic() + 60
    while len(children) < min(2, os.cpu_count() or 1) and time.monotonic() < until:
        children |= set(psutil.Process(demo.pid).children(recursive=True))
        time.sleep(0.1)
    time.sleep(3)  # in the middle of the trainings
    children |= set(psutil.Process(demo.pid).children(recursive=True))
    assert children, "trainings had begun"
    demo.send_signal(number)
    assert demo.wait(60) != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
