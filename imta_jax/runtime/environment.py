"""The hardware and software that a result was computed with."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import imta_jax
from imta_jax.runtime.optional_packages import is_installed

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def usable_cores() -> int:
    """The number of CPU cores that this process may use, at least 1.

    Fewer than the machine has if a scheduler or a container limits the process. On systems without
    such limits, all cores of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The memory that this process may allocate, in bytes.

    The memory of the machine, or less if the process has a limit (`ulimit -v`).
    """
    if not hasattr(os, "sysconf"):  # on Windows, where the limits are not known
        return sys.maxsize
    import resource

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return machine if limit == resource.RLIM_INFINITY else min(machine, limit)


def cpu_model() -> str:
    """The CPU's model name on Linux, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def package_versions(modules: Sequence[ModuleType] = ()) -> dict[str, str]:
    """Versions by package name: Python, this package, its numerical core and `modules`.

    An exported network runs without Flax, which is then left out.
    """
    core = {name: metadata.version(name) for name in _PACKAGES if is_installed(name)}
    own = {"python": platform.python_version(), "imta_jax": imta_jax.__version__}
    return own | core | {module.__name__: module.__version__ for module in modules}


def environment_record(modules: Sequence[ModuleType] = ()) -> dict[str, Any]:
    """Hardware and versions, for result files. The host's name is not included.

    Args:
      modules: further modules whose versions matter.

    Returns:
      `device` (kind of the first JAX device), `devices` (how many, over all processes), `cpu`,
      `cores` (that this process may use) and `versions`.
    """
    import jax  # Imported late: `usable_cores` is also used where JAX is not needed.

    devices = jax.devices()
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "versions": package_versions(modules),
    }
