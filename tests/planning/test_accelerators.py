"""Every program of a run, compiled for chips that are not attached.

Needs the compilers: `pip install "jax[tpu]"`, and for GPUs jax-cuda12-plugin and jax-cuda12-pjrt.
They stop after buffer assignment; nothing is executed.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_run

from imta_jax.errors import MissingPackageError
from imta_jax.planning.compilation import Request, compile_program
from imta_jax.planning.data_description import describe_data
from imta_jax.planning.devices import check_compiler
from imta_jax.planning.profile import gathered, host_transfers, profile
from imta_jax.planning.topologies import parse_topology

pytestmark = pytest.mark.accelerator
# Program -> whether the training images are on the chips.
PROGRAMS = {"phase_one": True, "phase_two": False, "evaluation": False}
BATCH = 512  # 128 images on each chip of v5e:2x2


def config_of(source, **changes):
    sizes = dict.fromkeys(("phase_one", "phase_two", "evaluation"), BATCH)
    config = {f"{name}__batch_size": size for name, size in sizes.items()}
    return tiny_run.run_config(source, **config, log__check_every_steps=4, **changes)


def requested(topology, source, program, on_device=False, **changes):
    """A request for the tiny network on a dataset with enough images for a batch."""
    config = config_of(source, **changes)
    data = describe_data(config.data)
    examples = dict.fromkeys(data.examples, 10 * BATCH)
    larger = type(data).from_dict({**data.to_dict(), "examples": examples})
    return Request(config, larger, topology, program, on_device)


def skip_without_compiler(topology):
    try:
        check_compiler(topology)
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["v5e:2x2", "h100:2"])
def programs(request, source):
    """All programs of a run, by name."""
    topology = parse_topology(request.param)
    skip_without_compiler(topology)
    requests = [requested(topology, source, name, on) for name, on in PROGRAMS.items()]
    with ThreadPoolExecutor(2) as pool:
        return topology, dict(zip(PROGRAMS, pool.map(compile_program, requests), strict=True))


def profile_of(compiled):
    info = compiled.info
    return profile(compiled.text, steps=info.steps, images_per_chip=info.images_per_chip)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_fits_and_runs_on_the_chips_alone(name, programs):
    topology, compiled = programs
    program = compiled[name]
    assert program.fits and 0 < program.memory_bytes < topology.chip.memory_bytes
    assert not program.float64
    assert not program.cpu_forms
    assert not host_transfers(program.text)
    assert " conditional(" not in program.text


@pytest.mark.parametrize("name", PROGRAMS)
def test_chips_exchange_gradients_and_statistics_only(name, programs):
    info, actual = programs[1][name].info, profile_of(programs[1][name])
    assert not list(gathered(programs[1][name].text, minimum_bytes=1))
    sent = sum(actual.step.collective_bytes.values())
    # Loss, accuracy and the flag of finite gradients are a few numbers per exit.
    assert sent <= 1.05 * (info.gradient_bytes + info.statistics_bytes) + 256
    assert set(+actual.step.collectives) <= {"all-reduce"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_layouts_of_full_batches_are_not_padded(name, programs):
    assert profile_of(programs[1][name]).padding < 1.5


def test_a_dispatch_does_not_copy_the_dataset(programs):
    program = programs[1]["phase_one"]
    assert program.info.steps == 4
    assert profile_of(program).dispatch.memory_bytes < program.info.image_bytes


def test_gradients_of_bfloat16_maps_are_reduced_in_float32(source):
    topology = parse_topology("v5e:2x2")
    skip_without_compiler(topology)
    program = compile_program(
        requested(topology, source, "phase_one", phase_one__compute_dtype="bfloat16")
    )
    sums = [line for line in program.text.splitlines() if " all-reduce(" in line]
    assert sums and all("bf16[" not in line for line in sums)


@pytest.fixture(scope="module")
def faulty(source):
    """A function from the name of a faulty loss to the compiled program, all for v5e:2x2."""
    topology = parse_topology("v5e:2x2")
    skip_without_compiler(topology)

    def compile_with(loss):
        objective = f"accelerator_faults:{loss}"
        return compile_program(
            requested(topology, source, "phase_one", phase_one__objective=objective)
        )

    return compile_with


def test_an_inserted_host_callback_is_found(faulty):
    assert host_transfers(faulty("with_callback").text)


def test_inserted_float64_is_found(faulty):
    assert faulty("with_float64").float64


def test_an_inserted_gather_of_the_batch_is_found(faulty):
    assert list(gathered(faulty("with_gather").text, minimum_bytes=BATCH))
