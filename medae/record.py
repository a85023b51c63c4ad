"""run.json: what ran, with which versions, seed and digests, when, and what became of each case.

It holds the ids of cases as the caller gave them, and nothing else about a patient: no paths, no argument list (a
command line may name a patient's file).
"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import medae
from medae.errors import MedaeError, OutputError
from medae.io.answer import AnswerFile, write_files

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "monai", "lightning-fabric", "numpy", "scikit-image", "pydicom", "nibabel", "highdicom")
"""Whose versions may change an answer."""


def now() -> datetime:
    """In UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class Run:
    """What is being done; `write` says it in run.json."""

    command: str
    """train, evaluate, predict ..."""
    seed: int | None = None
    digests: dict[str, str] = field(default_factory=dict)
    """Of what went in or came out: {"package": "sha256:..."}."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else is worth keeping, as plain data."""
    started: datetime = field(default_factory=now)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def done(self, case_id: str, **facts: Any) -> None:
        """One case, answered."""
        self.cases.append({"id": case_id, "status": "done", **facts})

    def failed(self, case_id: str, reason: str, **facts: Any) -> None:
        """One case that could not be answered, and why."""
        self.cases.append({"id": case_id, "status": "failed", "reason": reason, **facts})

    def write(self, out: Path, *, status: str = "done", reason: str | None = None) -> None:
        """run.json below `out`, whole or not at all. Raises OutputError."""
        data = {
            "command": self.command,
            "status": status,
            "reason": reason,
            "started": self.started.isoformat(),
            "finished": now().isoformat(),
            "seed": self.seed,
            "digests": self.digests,
            **self.facts,
            "versions": versions(),
            "commit": commit(),
            "cases": self.cases,
        }
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
        write_files([AnswerFile("run.json", "application/json", text.encode())], out)


@contextmanager
def recording(
    out: Path | None, command: str, *, seed: int | None = None, digests: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """A Run that is written when the work ends, well or not: status done, failed (with its reason) or interrupted.

    Nothing is written where `out` is None.
    """
    run = Run(command, seed, dict(digests or {}))
    try:
        yield run
    except BaseException as error:
        interrupted = not isinstance(error, Exception)
        # only our own messages are known to hold nothing about a patient
        reason = str(error) if isinstance(error, MedaeError) else type(error).__name__
        if out is not None:
            _write_quietly(run, out, "interrupted" if interrupted else "failed", reason)
        raise
    if out is not None:
        run.write(out)


def _write_quietly(run: Run, out: Path, status: str, reason: str) -> None:
    """What went wrong first is what the caller must hear of."""
    try:
        run.write(out, status=status, reason=reason)
    except OutputError as error:
        logger.debug("run.json could not be written: %s", error)


def versions() -> dict[str, str]:
    """Of medae, Python and the libraries that may change an answer; found without importing them."""
    found = {"medae": medae.__version__, "python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of medae's own checkout, with "-dirty" where files differ from it; None when installed."""
    root = Path(medae.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
