"""XLA flags for tests: programs compile in a fifth of the time and may run slower."""

# The emitters that XLA used before fusion emitters, in one thread. tests/cli/test_wheel.py trains
# with the defaults of XLA.
COMPILE_FAST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def with_devices(count: int) -> str:
    """`XLA_FLAGS` of a process that compiles fast, with that number of virtual CPU devices."""
    return f"{COMPILE_FAST} --xla_force_host_platform_device_count={count}"
