"""Messages about missing packages: the extra of this package that installs each."""

import importlib.util

from imta_jax.errors import MissingPackageError

# Top-level modules by the extra that installs them, as in pyproject.toml. The first extra that
# lists a module is the one that messages name.
_MODULES = {
    "train": ("cv2", "orbax", "pyarrow", "tensorboardX"),
    "report": ("jinja2", "matplotlib", "pandas"),
    "serve": ("PIL",),
    "onnx": ("onnx",),
    "tfds": ("tensorflow", "tensorflow_datasets"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
# Of the core. An installation with --no-deps, for choosing thresholds, lacks most of them.
_CORE = (
    *("absl", "chex", "filelock", "flatbuffers", "flax", "jax", "jaxtyping", "ml_collections"),
    *("numpy", "optax", "scipy", "tabulate", "tqdm"),
)


def install_command(extra: str) -> str:
    """The command that installs an extra, for messages."""
    return f'pip install -e ".[{extra}]" (outside a clone of the repository: "imta_jax[{extra}]")'


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # `sys.modules` holds None for it
        return False


def require(extra: str, purpose: str, *modules: str) -> None:
    """Checks that modules are installed, without importing them.

    Args:
      extra: the extra that installs them.
      purpose: what needs them, for the message, for example "writing a report".
      *modules: top-level modules; by default, all of the extra.

    Raises:
      MissingPackageError: a module is missing.
    """
    missing = [module for module in modules or _MODULES[extra] if not is_installed(module)]
    if missing:
        raise MissingPackageError(
            f"{purpose} requires {', '.join(missing)}, not installed here: {install_command(extra)}"
        )


def explained(error: ImportError, purpose: str) -> MissingPackageError | None:
    """The error that names the command which installs a module that could not be imported.

    Args:
      error: the failed import.
      purpose: what needs it, for the message.

    Returns:
      None if neither the core nor an extra has the module.
    """
    module = (error.name or "").partition(".")[0]
    if module in _CORE:
        return MissingPackageError(
            f"{purpose} requires {module}, which cannot be imported ({error}): pip install -e ."
            " (outside a clone of the repository: imta_jax) without --no-deps"
        )
    for extra, modules in _MODULES.items():
        if module in modules:
            return MissingPackageError(
                f"{purpose} requires {module}, which cannot be imported ({error}):"
                f" {install_command(extra)}"
            )
    return None
