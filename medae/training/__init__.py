"""Training: an experiment becomes a package, in one visible loop (loop.py), and then gets its gate (gate.py)."""

from pathlib import Path

from medae.experiment import Experiment
from medae.package import ModelPackage
from medae.training import loop
from medae.training.gate import with_gate

__all__ = ["train"]


def train(experiment: Experiment, out: Path, *, resume: bool = False, progress: bool | None = None) -> ModelPackage:
    """Train, and keep the best weights as a package, with a gate where the experiment asks for one.

    Leaves in `out`: package/ (the best so far), last.pt (to resume from), metrics.jsonl, pictures/, experiment.yaml and
    run.json; of a gate, the trainings under gate/ and shape/. progress: True: a bar on a terminal, plain lines
    elsewhere; None: a bar if there is a terminal. SIGTERM and SIGINT save the state and then end the process
    (SystemExit, KeyboardInterrupt).

    Raises TrainingError where the loss is no longer a number, SettingsError for data that leave nothing to train on
    and for a changed experiment on resuming, OutputError where `out` cannot be written or holds a training already.
    """
    package = loop.train(experiment, out, resume=resume, progress=progress)
    return with_gate(package, experiment, out, progress=progress)
