"""A separate executable cache for each test."""

import pytest
import tiny_run

from imta_jax.runtime import executable_cache


@pytest.fixture
def cache(tmp_path):
    """The cache folder; prefetched executables of other tests are dropped."""
    with tiny_run.compiled_once(tmp_path / "cache"):
        executable_cache._prefetched.clear()
        yield tmp_path / "cache" / "steps"
        executable_cache._prefetched.clear()
