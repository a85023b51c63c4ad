"""Memory that is promised before work starts: how many workers fit, and how large a case each may take."""

import resource
from pathlib import Path
from typing import NamedTuple

from medae.errors import UsageError
from medae.io import DEFAULT_LIMITS, Limits

CASE_BYTES = 1 << 28
"""Of a worker's share, at least, for the case in work: pictures and small volumes fit."""

VOXEL_BYTES = 48
"""What a voxel of three channels needs at the worst: file 3, decoded 6, prepared and being prepared 24, answer 15."""

OWN_BYTES = 1 << 26
"""By which the parent grows while it works."""


class Grant(NamedTuple):
    """What one worker may take."""

    limits: Limits = DEFAULT_LIMITS
    """Refuses what would not fit by its header, before it is decoded."""
    bytes: int | None = None
    """More than it holds now; asking the system for more fails. None: as much as there is."""


def shared_out(most: int, others: int, worker: int, wanted: int) -> tuple[int, Grant]:
    """How many workers fit into `most` bytes, `wanted` at most, and what each may take.

    others: bytes that other processes of the batch hold; worker: that each worker holds before its first case.
    Raises UsageError, with the numbers, where not even one fits.
    """
    for count in range(wanted, 0, -1):
        share = (most - others - OWN_BYTES) // count - worker
        if share >= CASE_BYTES:
            voxels = share // VOXEL_BYTES
            fitting = {"pixels": min(DEFAULT_LIMITS.pixels, voxels), "voxels": min(DEFAULT_LIMITS.voxels, voxels)}
            return count, Grant(DEFAULT_LIMITS.model_copy(update=fitting), share)
    needed = others + OWN_BYTES + worker + CASE_BYTES
    raise UsageError(
        f"--max-ram is {_mib(most)} MiB, and one worker with this model needs {_mib(needed)} MiB: {_mib(worker)} for "
        f"itself, {_mib(CASE_BYTES)} for a case, {_mib(others + OWN_BYTES)} for the other processes"
    )


def enforce(grant: Grant) -> None:
    """Of this process. Beyond it, numpy raises MemoryError and torch its own error; nobody is killed."""
    if grant.bytes is not None:
        limit = _data_bytes() + grant.bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def resident_bytes() -> int:
    """What this process holds in memory; 0 where the system does not say."""
    return _of_statm(1)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: private, writable memory, held or only promised."""
    return _of_statm(5)


def _of_statm(column: int) -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def _mib(size: int) -> int:
    return size >> 20
