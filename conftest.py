"""Strict surroundings for every test: warnings are errors, no silent broadcasting, 8 devices."""

import os

# Before JAX starts: several devices, so that sharding is exercised on every machine.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile much and compute little.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="session")
def _compiled_stages_are_kept_for_this_session_only(tmp_path_factory):
    from imta_jax.runtime import parallel_compilation

    parallel_compilation.DEFAULT_CACHE_DIR = tmp_path_factory.mktemp("cache")
