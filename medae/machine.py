"""What this process may use of the machine it runs on."""

import os
from pathlib import Path


def cores() -> int:
    """Cores that this process may use: a batch system or a container can hold them below the machine's."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _quota())


def _quota() -> int:
    """Whole cores that the container is given (cgroup v2); many without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return 1 << 16
