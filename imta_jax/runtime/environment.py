"""How many processor cores this process may use."""

import os


def usable_cores() -> int:
    """Cores, at least 1: fewer than the machine's where a scheduler or container bound the process.

    Where the system has no such bound, all of the machine's.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
