"""SegNet beside the U-Net at equal widths and steps on real nuclei: quality, time, memory; and what needs no training.

DSB2018 (test: md5 of the id, of five parts the first) and TNBC (every patient held out once, in two folds). Each
network is trained with the same crops, steps and seeds; its mask is parted into nuclei by a watershed. The floor is
Otsu's threshold, once with the watershed that it was published with and once with that of the networks. Results,
models and costs are kept in `--out`: a run that was cut off goes on. Times are those of the processor, of one thread:
other work does not count. Those of a CUDA device are in `benchmarks.cuda`.

    python -m benchmarks.nuclei [--sets tnbc] [--seeds 0 1 2] [--out runs/nuclei] [--picture FILE.png]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import table
from benchmarks.nuclei_data import (
    SHARED,
    Picture,
    dsb2018,
    held_out,
    measured,
    otsu,
    parted,
    parted_by_pixels,
    tnbc,
    write_cases,
)
from benchmarks.perceptual import picture_of

SETS = {"dsb2018": (dsb2018, (0,)), "tnbc": (tnbc, (0, 1))}
STEPS = {"dsb2018": 4000, "tnbc": 1500}
"""Many microscopes, and one stain."""
TURNS: dict[str, Any] = {"flip": ["rows", "columns"], "rot90": True, "intensity": {}}
AUGMENT: dict[str, dict[str, Any]] = {
    "dsb2018": TURNS
    | {"colour": {"hue_degrees": 180, "saturation": 1, "probability": 0.25}, "invert": {"probability": 0.15}},
    "tnbc": TURNS,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "segnet": {"kind": "segnet", "features": [16, 32, 64, 128], "convolutions": [2, 2, 2, 2]},
    "unet": {"kind": "unet", "features": [16, 32, 64, 128, 128], "strides": [1, 2, 2, 2]},
}
"""The same widths at the same sizes; the U-Net's last level is where SegNet's code is pooled once more."""
BATCH, PATCH = 8, 96
FLOOR, ALIKE = "otsu + watershed", "otsu, parted alike"
UNTRAINED = (FLOOR, ALIKE)
TURNED = " x 8"
"""Of a network whose answers to the eight flips and quarter turns of a picture are averaged."""
WAYS = ("", TURNED)
QUALITIES = ("Dice", "AP@.5", "AJI")
COSTS = {"weights": "weights", "step_ms": "step, ms", "peak_mib": "peak, MiB", "picture_ms": "picture of 256, ms"}
Task = tuple[str, int, str, int, int]
"""Set, fold, method, seed, steps."""


def experiment(name: str, network: str, cases: Path, steps: int, seed: int, workers: int = 0) -> Any:
    """The training of one network on one set."""
    from medae.experiment import Experiment

    return Experiment.model_validate(
        {
            "name": f"nuclei-{network}",
            "data": {"kind": "cases", "path": str(cases)},
            # the brightest .5 % would be all nuclei of a nearly empty picture
            "preparation": {"channels": 3, "intensity": {"kind": "percentile", "upper": 99.9}},
            "task": {"kind": "segmentation", "labels": [{"name": "nucleus", "colour": [255, 210, 0]}]},
            "network": NETWORKS[network],
            "objectives": [{"kind": "dice_ce"}],
            "augment": AUGMENT[name],
            "training": {
                "steps": steps,
                "validate_every": steps // 2,
                "batch_size": BATCH,
                "patch": [PATCH, PATCH],
                "learning_rate": 0.003,
                "ema": 0.99,
                "seed": seed,
                "threads": 1,
                "precision": "bf16",  # half the time on processors that know it, too
                "workers": workers,
                "pictures": 0,
            },
        }
    )


def measure(task: Task, pictures: list[Picture], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each held-out picture by one method; a network is trained without them first."""
    name, fold, method, seed, _ = task
    segment = partial(otsu, name) if method in UNTRAINED else segmenter(task, pictures, arguments)
    part = parted_by_pixels if method == FLOOR else parted
    for picture in pictures:
        if held_out(name, picture, fold) or (method in UNTRAINED and name == "tnbc"):
            mask = segment(picture.rgb)
            found = measured(mask, part(mask), picture.nuclei)
            yield {"set": name, "method": method, "seed": seed, "id": picture.id} | found


def segmenter(
    task: Task, pictures: list[Picture], arguments: argparse.Namespace
) -> Callable[[NDArray[np.uint8]], NDArray[np.bool_]]:
    """Picture -> mask."""
    from medae.image import Image
    from medae.package import load
    from medae.predictor import Predictor

    name, fold, method, seed, steps = task
    predictor = Predictor(load(trained((name, fold, method.removesuffix(TURNED), seed, steps), pictures, arguments)))
    if method.endswith(TURNED):
        return partial(averaged, predictor)
    return lambda rgb: predictor(Image.from_picture(rgb)).image.pixels[0, 0] > 0


def trained(task: Task, pictures: list[Picture], arguments: argparse.Namespace) -> Path:
    """The model that is kept, or one that is trained now."""
    from medae.training import train

    name, fold, network, seed, steps = task
    kept: Path = arguments.out / f"{network}-{name}-{fold}-seed{seed}-{steps}"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            cases = write_cases(name, pictures, fold, Path(folder) / "data")
            setup = experiment(name, network, cases, steps, seed, arguments.workers)
            train(setup, Path(folder) / "run").save(kept)
    return kept


def averaged(predictor: Any, rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the mean probability over the eight flips and quarter turns of the picture is above one half."""
    from medae.image import Image

    total = np.zeros(rgb.shape[:2], np.float64)
    for turns in range(4):
        for side in (1, -1):
            seen = np.ascontiguousarray(np.rot90(rgb, turns)[:, ::side])
            probability = predictor(Image.from_picture(seen), probabilities=True).probabilities.pixels[0, 0]
            total += np.rot90(probability[:, ::side], -turns)
    return total > 4


def drawn(
    pictures: list[Picture], arguments: argparse.Namespace, rows: int = 3
) -> dict[str, list[NDArray[np.float32]]]:
    """Held-out pictures of DSB2018 with the borders of what is true and of what both networks find."""
    shown = [picture for picture in pictures if held_out("dsb2018", picture, 0)]
    shown = [shown[at] for at in np.linspace(0, len(shown) - 1, rows).astype(int)]
    found = {"truth": [bordered(picture.rgb, picture.nuclei) for picture in shown]}
    for network in NETWORKS:
        task = ("dsb2018", 0, network, arguments.seeds[0], arguments.steps or STEPS["dsb2018"])
        segment = segmenter(task, pictures, arguments)
        found[network] = [bordered(picture.rgb, parted(segment(picture.rgb))) for picture in shown]
    return found


def bordered(rgb: NDArray[np.uint8], nuclei: NDArray[np.int32]) -> NDArray[np.float32]:
    """(3, R, W) in 0..1, the nuclei with yellow borders; not smaller than what is shown."""
    from skimage.segmentation import mark_boundaries

    return np.moveaxis(mark_boundaries(rgb / 255, nuclei, color=(1, 0.85, 0)), 2, 0).astype(np.float32)


def cost(network: str, size: int = 256) -> dict[str, float]:
    """Of one training step at the sizes of the training, and of one picture of `size`; in a process of its own."""
    import torch
    from pydantic import TypeAdapter

    from medae.networks import NetworkConfig
    from medae.networks.base import run as run_network
    from medae.objectives import DiceCE, Loss

    torch.set_num_threads(1)
    net = TypeAdapter(NetworkConfig).validate_python(NETWORKS[network]).build(3, 2)
    optimiser, loss = torch.optim.AdamW(net.parameters()), Loss([DiceCE()])
    x, target = torch.rand(BATCH, 3, PATCH, PATCH), torch.randint(0, 2, (BATCH, 1, PATCH, PATCH))

    def step() -> None:
        optimiser.zero_grad()
        loss(run_network(net, x), target, 0.0)[0].backward()
        optimiser.step()

    before = _peak()
    seconds = [_seconds(step) for _ in range(8)]
    peak = _peak()
    picture = torch.rand(1, 3, size, size)
    net.eval()
    with torch.inference_mode():
        net(picture)
        forward = [_seconds(lambda: net(picture)) for _ in range(8)]
    return {
        "weights": sum(values.numel() for values in net.parameters()),
        "step_ms": 1e3 * float(np.median(seconds)),
        "peak_mib": (peak - before) / 1024,
        "picture_ms": 1e3 * float(np.median(forward)),
    }


def _peak() -> int:
    """KiB of this program; what `resource` says includes the parent's at the fork."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def _seconds(work: Any) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def costs(path: Path, rounds: int = 3) -> dict[str, dict[str, float]]:
    """Network -> medians over processes of its own, both networks in turn; from the file if it is there."""
    if not path.exists():
        found: dict[str, list[dict[str, float]]] = {network: [] for network in NETWORKS}
        for _ in range(rounds):
            for network, values in found.items():
                command = [sys.executable, "-m", "benchmarks.nuclei", "--cost", network]
                values.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        medians = {
            network: {key: float(np.median([each[key] for each in values])) for key in values[0]}
            for network, values in found.items()
        }
        path.write_text(json.dumps(medians))
    read: dict[str, dict[str, float]] = json.loads(path.read_text())
    return read


def summary(lines: list[dict[str, Any]], costs: dict[str, dict[str, float]]) -> str:
    """Mean over pictures, then mean and range over seeds; what a step of the training and a picture cost."""
    rows = []
    for name in SETS:
        for method in (*UNTRAINED, *(network + way for network in NETWORKS for way in WAYS)):
            mine = [line for line in lines if (line["set"], line["method"]) == (name, method)]
            seeds = sorted({line["seed"] for line in mine})
            means = [
                [np.mean([line[key] for line in mine if line["seed"] == seed]) for key in QUALITIES] for seed in seeds
            ]
            spent = [f"{costs[method][key]:.0f}" if method in costs else "" for key in COSTS]
            if seeds:
                rows.append((name, method, len(seeds), *_shown(np.array(means)), *spent))
    return table(("set", "method", "seeds", *QUALITIES, *COSTS.values()), rows)


def _shown(means: Any) -> list[str]:
    spread = np.ptp(means, axis=0)
    return [
        f"{mean:.3f}" + (f" (range {wide:.3f})" if wide else "")
        for mean, wide in zip(means.mean(0), spread, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="where dsb2018_stage1 and tnbc_nuclei lie")
    parser.add_argument("--steps", type=int, help=f"of each training; without: {STEPS}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=0, help="processes that cut patches for a training")
    parser.add_argument("--out", type=Path, default=Path("runs/nuclei"), help="keeps results.jsonl")
    parser.add_argument("--only", choices=[*UNTRAINED, *NETWORKS], nargs="+", default=[*UNTRAINED, *NETWORKS])
    parser.add_argument("--sets", choices=list(SETS), nargs="+", default=list(SETS))
    parser.add_argument("--picture", type=Path, help="draw what both find on pictures of DSB2018")
    parser.add_argument("--cost", choices=list(NETWORKS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cost:
        print(json.dumps(cost(arguments.cost)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = {name: list(read(arguments.data)) for name, (read, _) in SETS.items()}
    lines = results(pictures, arguments)
    print(summary(lines, costs(arguments.out / "costs.json")))
    if arguments.picture:
        found = drawn(pictures["dsb2018"], arguments)
        picture_of(found, rows=3, side=160, zoom=1).quantize(128).save(arguments.picture, optimize=True)


def results(pictures: dict[str, list[Picture]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of what was asked for; those that are missing in results.jsonl are made now and added."""
    path = arguments.out / "results.jsonl"
    for task in tasks(arguments):
        if task in _lines(path):
            continue
        made = [line | {"run": task} for line in measure(task, pictures[task[0]], arguments)]
        with path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in made))
        said = {key: round(float(np.mean([line[key] for line in made])), 3) for key in QUALITIES}
        print(*task, said, file=sys.stderr)
    found = _lines(path)
    return [line for task in tasks(arguments) for line in found[task]]


def tasks(arguments: argparse.Namespace) -> list[Task]:
    """Seed by seed, so that a run that is cut off compares what is comparable."""
    floors: list[Task] = [(name, 0, way, 0, 0) for name in arguments.sets for way in UNTRAINED if way in arguments.only]
    return floors + [
        (name, fold, network + way, seed, arguments.steps or STEPS[name])
        for seed in arguments.seeds
        for name in arguments.sets
        for fold in SETS[name][1]
        for network in NETWORKS
        if network in arguments.only
        for way in WAYS
    ]


def _lines(path: Path) -> dict[Task, list[dict[str, Any]]]:
    """By the task that made them."""
    found: dict[Task, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        made = json.loads(line)
        found.setdefault(tuple(made["run"]), []).append(made)
    return found


if __name__ == "__main__":
    main()
