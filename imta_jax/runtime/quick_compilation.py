"""Compiler options of programs that run once, such as the initialization of a network."""

import jax


def options_for_one_run() -> dict[str, int]:
    """Options for `jax.jit(..., compiler_options=...)`.

    On CPUs, initializing a small CNN of Linen layers takes 4 s instead of 24 s. Results differ by
    rounding.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
