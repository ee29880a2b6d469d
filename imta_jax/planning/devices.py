"""Devices of a topology that is not attached, as JAX describes them to its compilers."""

import importlib.util
import os
from typing import Any

import jax
import jaxlib
from jax.experimental import topologies

from imta_jax.errors import InputError, MissingPackageError
from imta_jax.planning.topologies import Topology, gpu_grid

# libtpu looks for a TPU host's metadata, writes to a log folder and locks the machine unless these
# are set before it is loaded.
COMPILER_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Modules, one of which is the compiler, and the command that installs it. The CUDA plugin compiles
# without the libraries of NVIDIA, which take several gigabytes.
_COMPILERS = {
    "tpu": (("libtpu",), 'pip install "jax[tpu]=={version}"'),
    "cuda": (
        ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"),
        "pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}",
    ),
}
# Fewer chips than the smallest topology that libtpu describes.
_SMALLEST = {"1x1": "2x2", "1x1x1": "2x2x1"}


def check_compiler(topology: Topology) -> None:
    """Checks that the compiler for a topology is installed.

    Raises:
      MissingPackageError: it is not; the message has the command that installs it.
    """
    names, command = _COMPILERS[topology.chip.platform]
    if not any(_is_installed(name) for name in names):
        raise MissingPackageError(
            f"--topology={topology.name} needs {names[0]}, the compiler for these chips, which is"
            f" not installed; install it: {command.format(version=jax.__version__)}"
        )


def _is_installed(name: str) -> bool:
    package = importlib.util.find_spec(name.partition(".")[0])
    return package is not None and importlib.util.find_spec(name) is not None


def load_devices(topology: Topology) -> list[Any]:
    """The devices of a topology. Loads the compiler; call it in a process of its own.

    Raises:
      InputError: the compiler rejects the topology.
      MissingPackageError: see `check_compiler`.
    """
    check_compiler(topology)
    os.environ.update(COMPILER_ENVIRONMENT)
    try:
        devices = _describe(topology)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:300]
        raise InputError(
            f"--topology={topology.name} is rejected by the compiler (jaxlib"
            f" {jaxlib.version.__version__}): {reason}"
        ) from error
    return devices[: topology.chips]


def _describe(topology: Topology) -> list[Any]:
    if topology.chip.platform == "cuda":
        description = topologies.get_topology_desc(
            platform="cuda", target_config=topology.target_config, topology=gpu_grid(topology)
        )
        return description.devices
    kind, _, shape = topology.name.partition(":")
    # Without it, each of a v4 chip's two cores is a device.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    name = f"{kind}:{_SMALLEST.get(shape, shape)}"
    return topologies.get_topology_desc(name, "tpu", **options).devices
