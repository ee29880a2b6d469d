"""The identity of a machine: the compiler, device and CPU that programs and times depend on."""

import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib

from imta_jax.runtime.environment import cpu_model, usable_cores

# Compilers whose executables another version cannot load.
_COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax-cuda12-pjrt", "jax-cuda13-pjrt")}


def compiler_identity(device: Any) -> dict[str, str]:
    """The kind of a device, and the versions of JAX and of the compiler.

    Args:
      device: that programs are compiled for; it need not be there.
    """
    compilers = _COMPILERS.get(device.platform, ())
    return {
        "device_kind": device.device_kind,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        **{name: version for name in compilers if (version := _installed_version(name))},
    }


def machine_identity() -> dict[str, Any]:
    """The identity of this machine's compiler, CPU and number of usable cores."""
    features = hashlib.sha256(repr(cpu_features()).encode()).hexdigest()[:16]
    return {
        **compiler_identity(jax.devices()[0]),
        "cpu": cpu_model(),
        "cpu_features": features,
        "cores": usable_cores(),
    }


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """The host's CPU and its instruction sets, which compiled code may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = ("model name", "flags", "Features", "CPU ")
    features = {line for line in lines if line.startswith(names)}
    return platform.machine(), platform.processor(), *sorted(features)


def differences(recorded: Any, expected: Mapping[str, Any], ignored: Sequence[str] = ()) -> str:
    """Names and values that differ, as text; "" if none do."""
    fields = recorded if isinstance(recorded, dict) else {}
    names = [
        name
        for name in {**expected, **fields}
        if name not in ignored and fields.get(name) != expected.get(name)
    ]
    return ", ".join(
        f"{name} is {fields.get(name)!r:.40}, expected {expected.get(name)!r:.40}" for name in names
    )


def _installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
