"""`medae demo`: the whole way on real images that come with the dependencies, ending in pictures.

Train, evaluate, serve, ask, look: by the same doors that everyone uses, `medae train`, `medae serve` and HTTP.
"""

import csv
import io as streams
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medae import pictures
from medae.batch.folder import require_writable
from medae.data import artefacts, samples
from medae.errors import TrainingError
from medae.evaluation import evaluate
from medae.image import Image
from medae.io import encode_png, read_image, write_image
from medae.io.answer import AnswerFile, write_files
from medae.package import load

logger = logging.getLogger(__name__)

MODELS = ("nuclei-unet", "nuclei-segnet", "denoise-tissue", "denoise-grey", "anomaly-tissue")
QUICK_STEPS = 20
TRAINING_MINUTES = 0.9
"""A training ends by then, whatever the machine."""
START_SECONDS = 90
WIDTH = 208
"""Columns of the held-out part that are shown; more would be too small to look at."""
NOISE = 25
"""Of the noisy picture, of 255: what denoise-tissue was trained for."""


@dataclass(frozen=True)
class Question:
    """One call of the service."""

    endpoint: str
    model: str
    input: str
    """A file, or a folder of one series, below inputs/."""


QUESTIONS = (
    Question("segment", "nuclei-unet", "tissue.png"),
    Question("segment", "nuclei-segnet", "tissue.png"),
    Question("denoise", "denoise-tissue", "tissue-noisy.png"),
    Question("score", "anomaly-tissue", "tile.png"),
    Question("score", "anomaly-tissue", "tile-inked.png"),
    Question("denoise", "denoise-grey", "mr-oblique.nii.gz"),
    Question("denoise", "denoise-grey", "mr-slice.dcm"),
    Question("denoise", "denoise-grey", "ct-slice.dcm"),
    Question("denoise", "denoise-grey", "ct-series"),
)


@dataclass(frozen=True)
class Answered:
    """What came back."""

    question: Question
    seconds: float
    summary: dict[str, Any]
    files: tuple[str, ...]
    picture: pictures.RGB


def run(out: Path, quick: bool = False) -> None:
    """Leaves models/, evaluation/, inputs/, answers/, contact-sheet.png and results.csv under `out`.

    quick: trainings of seconds, which show the way and not the quality. Nothing is left running, whatever happens.
    Raises TrainingError when a training or the service does not come up, with what it said.
    """
    started = time.monotonic()
    _say(f"1/4  training {len(MODELS)} small models into {out / 'models'}")
    _train_all(out / "models", quick)
    _say("2/4  measuring them on the parts of the images that they have not seen")
    for name in MODELS:
        metrics = evaluate(load(out / "models" / name / "package"), None, out / "evaluation" / name).metrics
        _say(f"     {name:15} {_headline(metrics)}")
    _say("3/4  serving them, and asking over HTTP")
    _make_inputs(out / "inputs")
    with _service([out / "models" / name / "package" for name in MODELS]) as address:
        answered = [_ask(address, question, out) for question in QUESTIONS]
    _write_results(answered, out)
    _show(answered)
    _say(f"4/4  look at {out / 'contact-sheet.png'} and {out / 'answers'} ({time.monotonic() - started:.0f} s in all)")


def _say(text: str) -> None:
    from rich import print as show

    show(text, flush=True)


def _train_all(folder: Path, quick: bool) -> None:
    """As many trainings at a time as there are cores, one thread each."""
    require_writable(folder)
    waiting, running = list(MODELS), dict[str, Training]()
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                name = waiting.pop(0)
                running[name] = _start_training(name, folder, quick)
            time.sleep(0.1)
            for name in [name for name, training in running.items() if training.process.poll() is not None]:
                _require_trained(name, running[name], folder)
                _say(f"     {name:15} {time.monotonic() - running.pop(name).started:4.0f} s")
    finally:
        for training in running.values():
            _end(training.process)


class Training(NamedTuple):
    """One that runs."""

    process: subprocess.Popen[bytes]
    started: float


def _start_training(name: str, folder: Path, quick: bool) -> Training:
    """By `medae train`; one that was begun before goes on, one that was finished is kept."""
    changes = ["training.threads=1", f"training.time_limit_minutes={TRAINING_MINUTES}"]
    if quick:
        changes += [f"training.steps={QUICK_STEPS}", f"training.validate_every={QUICK_STEPS}"]
    command = [sys.executable, "-m", "medae", "train", f"demo/{name}", "--out", str(folder / name)]
    command += [part for change in changes for part in ("--set", change)]
    if (folder / name / "last.pt").exists():
        command.append("--resume")
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return Training(process, time.monotonic())


def _require_trained(name: str, training: Training, folder: Path) -> None:
    if training.process.returncode != 0:
        log = folder / f"{name}.log"
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
        raise TrainingError(f"the training of {name} failed: {last[0]} (all of it: {log})")


def _headline(metrics: dict[str, Any]) -> str:
    if metrics["task"] == "segmentation":
        return f"Dice {metrics['dice']['mean']:.3f}"
    if metrics["task"] == "restoration":
        return f"PSNR {metrics['psnr_input']['mean']:.1f} dB -> {metrics['psnr']['mean']:.1f} dB"
    score = next(name for name, numbers in metrics["detection"]["all"].items() if isinstance(numbers, dict))
    kinds = {kind: found[score]["auroc"] for kind, found in metrics["detection"].items() if kind != "all"}
    return "AUROC " + ", ".join(f"{kind} {value:.3f}" for kind, value in kinds.items())


def _make_inputs(folder: Path) -> None:
    """Held-out tissue, clean and noisy; a held-out tile, clean and with ink; an oblique volume; DICOM."""
    tissue = next(case for case in samples.Sample(name="denoise-tissue").load("test")).image
    rgb = np.moveaxis(tissue.pixels[:, 0], 0, 2)[:, :WIDTH]
    rng = np.random.default_rng(25)
    noisy = np.clip(rgb + rng.normal(0, NOISE, rgb.shape), 0, 255).astype(np.uint8)
    tile = np.moveaxis(next(samples.Sample(name="anomaly-tiles").load("test")).image.pixels[:, 0], 0, 2)
    named = {"tissue": rgb, "tissue-noisy": noisy, "tile": tile, "tile-inked": artefacts.ink(tile, rng)}
    write_files(
        [AnswerFile(f"{name}.png", "image/png", encode_png(picture)) for name, picture in named.items()], folder
    )
    write_image(samples.oblique_volume(), folder / "mr-oblique.nii.gz")
    shutil.copyfile(samples.ct_slice_file(), folder / "ct-slice.dcm")
    shutil.copyfile(samples.mr_slice_file(), folder / "mr-slice.dcm")
    shutil.copytree(samples.ct_series_folder(), folder / "ct-series", dirs_exist_ok=True)


@contextmanager
def _service(packages: Sequence[Path]) -> Iterator[str]:
    """`medae serve` on a free port of this machine, ready; ended on the way out."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "medae", "serve", *map(str, packages), "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _await_ready(address, process)
        yield address
    finally:
        _end(process)


def _await_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    import httpx

    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise TrainingError(
                f"the service ended with exit code {process.returncode}; start `medae serve` to see why"
            )
        try:
            if httpx.get(f"{address}/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise TrainingError(f"the service was not ready after {START_SECONDS} s; start `medae serve` to see why")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ask(address: str, question: Question, out: Path) -> Answered:
    """Everything as a zip into answers/, and the overlay for people."""
    import httpx

    source = out / "inputs" / question.input
    parts = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [("file", (path.name, path.read_bytes())) for path in parts]
    url = f"{address}/v1/{question.endpoint}"
    with httpx.Client(timeout=120, headers={"Accept": "application/zip"}) as client:
        started = time.monotonic()
        answer = client.post(url, params={"model": question.model}, files=files).raise_for_status()
        seconds = time.monotonic() - started
        shown = client.post(
            url, params={"model": question.model, "output": "overlay"}, files=files, headers={"Accept": "image/png"}
        ).raise_for_status()
    stem = f"{question.input.split('.')[0]}-{question.model}"
    with zipfile.ZipFile(streams.BytesIO(answer.content)) as archive:
        made = [_renamed(name, archive.read(name), stem) for name in archive.namelist()]
    made.append(AnswerFile(f"{stem}_overlay.png", "image/png", shown.content))
    write_files(made, out / "answers")
    summary = next(json.loads(file.data) for file in made if file.name.endswith("_summary.json"))
    picture = _panel(read_image(source), np.moveaxis(read_image(shown.content).pixels[:, 0], 0, 2), question)
    return Answered(question, seconds, summary, tuple(file.name for file in made), picture)


def _renamed(name: str, data: bytes, stem: str) -> AnswerFile:
    """The service names every answer `image...`; here several answers share a folder."""
    return AnswerFile(name.replace("image", stem, 1), "", data)


def _panel(image: Image, overlay: pictures.RGB, question: Question) -> pictures.RGB:
    """Input and answer; a restoration's overlay shows both already."""
    if question.endpoint == "denoise":
        return overlay
    shown = pictures.upright(image)
    before = pictures.to_rgb(shown.pixels[:, shown.geometry.shape[0] // 2], *pictures.display_range(shown))
    return pictures.compared(pictures.square_pixels(before, shown), overlay)


def _write_results(answered: Sequence[Answered], out: Path) -> None:
    sheet = pictures.contact_sheet([(_caption(answer), answer.picture) for answer in answered])
    text = streams.StringIO()
    table = csv.writer(text)
    table.writerow(["input", "endpoint", "model", "seconds", "answer", "files"])
    for answer in answered:
        asked = answer.question
        row = [asked.input, asked.endpoint, asked.model, f"{answer.seconds:.3f}", _answer_in_words(answer)]
        table.writerow([*row, " ".join(answer.files)])
    write_files(
        [
            AnswerFile("contact-sheet.png", "image/png", encode_png(sheet)),
            AnswerFile("results.csv", "text/csv", text.getvalue().encode()),
        ],
        out,
    )


def _show(answered: Sequence[Answered]) -> None:
    from rich import print as show
    from rich.table import Table

    table = Table("input", "endpoint", "model", "seconds", "answer")
    for answer in answered:
        asked = answer.question
        table.add_row(asked.input, asked.endpoint, asked.model, f"{answer.seconds:.2f}", _answer_in_words(answer))
    show(table)


def _caption(answer: Answered) -> str:
    asked = answer.question
    return f"{asked.input}  /v1/{asked.endpoint}  {asked.model}:  {_answer_in_words(answer)}"


def _answer_in_words(answer: Answered) -> str:
    first = list(answer.summary["scores"].items())[:2]  # a caption has room for no more
    scores = ", ".join(f"{name} {value:.4g}" for name, value in first)
    percentile = answer.summary["percentile"]
    return scores if percentile is None else f"{scores}, percentile {percentile:.0f}, p {answer.summary['p_value']:.3f}"
