"""How a batch stands, read from its folder alone."""

from pathlib import Path
from typing import Any

from rich.console import Console

from medae.batch import journal, lease, results
from medae.batch.folder import Folder
from medae.batch.plan import Plan
from medae.batch.run import recorded_keys

FAILURES = 20
"""Named at most, for people."""


def state(out: Path) -> dict[str, Any]:
    """Counts, reasons by code, the ids that failed, whether a process is at work. Raises UsageError for no batch."""
    folder = Folder(out.absolute())
    plan, names = Plan.open(folder.plan), list(recorded_keys(out))
    rows = journal.read(journal.segments(folder), ["id", "package", "status", "code", "reason"])
    counts = results.count(plan, rows, names)
    return {
        "cases": counts.total,
        "done": counts.done,
        "failed": counts.failed,
        "fault": counts.fault,
        "left": counts.left,
        "running": lease.is_busy(folder),
        "models": names,
        "codes": dict(counts.reasons),
        "failures": _failures(plan, rows, names),
    }


def _failures(plan: Plan, rows: Any, names: list[str]) -> list[dict[str, str]]:
    found = []
    ids = plan.ids()
    for name in names:
        newest = results.latest(ids, rows, name)
        at = newest.at[newest.at >= 0]
        mine = rows.take(at).filter(results.is_not_done(rows.take(at)["status"]))
        found += [
            {"id": row["id"], "model": name, "code": row["code"], "reason": row["reason"]} for row in mine.to_pylist()
        ]
    return found


def show(found: dict[str, Any]) -> None:
    """For people, on stdout."""
    console = Console(soft_wrap=True, highlight=False)
    running = "running" if found["running"] else "finished" if not found["left"] else "interrupted"
    counts = ", ".join(f"{found[name]} {name}" for name in ("done", "failed", "fault", "left") if found[name])
    console.print(f"{running}: {counts} of {found['cases']}")
    for code, count in sorted(found["codes"].items()):
        console.print(f"  {count} {code}")
    for failure in found["failures"][:FAILURES]:
        console.print(f"{failure['id']}: {failure['reason']}", markup=False)
    if len(found["failures"]) > FAILURES:
        console.print(f"and {len(found['failures']) - FAILURES} more; `medae batch export` has all")
