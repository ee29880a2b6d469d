"""Strict settings for every test: typed array shapes, no implicit rank promotion, 8 devices."""

import gc
import os
import signal
import threading

import compile_flags

# Before JAX starts: several devices, so that sharding is tested on every machine.
os.environ.setdefault("XLA_FLAGS", compile_flags.with_devices(8))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest
from jaxtyping import install_import_hook

# Background jobs of a shell ignore Ctrl-C, and so would the processes that tests start.
IN_MAIN_THREAD = threading.current_thread() is threading.main_thread()
if IN_MAIN_THREAD and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Checks annotated array shapes and types in each call. Must precede the first import of a module.
CHECKED = tuple(
    f"imta_jax.{name}" for name in ("evaluation", "inference", "models", "nn", "techniques")
)
install_import_hook(CHECKED, "annotation_checks.check")

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests spend more time compiling than computing.
jax.config.update("jax_disable_most_optimizations", True)
# As in imta_jax/cli/main.py: tracing creates many objects, which Python's defaults search often.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_finish() -> None:
    """Excludes the modules and test items, which live to the end, from garbage collection."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _compiled_stages_are_kept_for_this_session_only(tmp_path_factory):
    from imta_jax.runtime import parallel_compilation

    parallel_compilation.DEFAULT_CACHE_DIR = tmp_path_factory.mktemp("cache")
