"""Summaries of stored programs."""

import pytest

from imta_jax.planning.hlo_text import Module, array_shapes
from imta_jax.planning.profile import arrays_of_type, gathered, host_transfers, profile


@pytest.mark.parametrize(
    ("text", "size", "padded", "in_device_memory"),
    [
        ("f32[12]{0:T(128)}", 48, 512, True),
        ("f32[16,8]{0,1:T(8,128)S(1)}", 512, 4096, False),
        ("bf16[8,128]{1,0:T(8,128)(2,1)}", 2048, 2048, True),
        ("f32[]{:T(128)}", 4, 4, True),
        ("u8[128,32,32,3]{0,2,3,1:T(32,128)(4,1)}", 393216, 393216, True),
        ("f32[3,5]{1,0}", 60, 60, True),
        ("pred[7]", 7, 7, True),
    ],
)
def test_layouts_give_padded_sizes(text, size, padded, in_device_memory):
    (actual,) = array_shapes(text)
    assert (actual.bytes, actual.padded_bytes) == (size, padded)
    assert actual.in_device_memory is in_device_memory


def test_instructions_have_opcode_operands_and_results(hlo):
    module = Module(hlo("step"))
    actual = {instruction.name: instruction for instruction in module.instructions(module.entry)}
    fusion = actual["%fusion.2"]
    assert (fusion.opcode, fusion.operands, len(fusion.shapes)) == ("fusion", ("%fusion.1",), 2)
    assert fusion.cycles == 3000 and "batch_normalize" in fusion.op_name
    assert "%add.1" not in actual, "of another computation"


def test_a_step_is_summarized(hlo):
    step = profile(hlo("step"), steps=1, images_per_chip=16)
    work = step.step
    assert work.kernels == 3
    assert work.cycles == {"convolutions": 1500, "batch normalization": 3000}
    assert work.collectives == {"all-reduce": 3}
    assert work.collective_bytes == {"all-reduce": 4 * 4 * 12}
    assert step.chain == 2, "the third message waits for none"
    # The copy to the chip, and the operand of the first fusion that is in main memory.
    assert work.memory_bytes == 2048 + 4096
    assert step.padding == (4096 + 2 * 512 + 512) / (512 + 2 * 48 + 48)


def test_arrays_of_the_batch_are_counted(hlo):
    text = hlo("step")
    assert profile(text, steps=1, images_per_chip=16).step.batch_bytes == 3 * 4096
    assert profile(text, steps=1, images_per_chip=99).step.batch_bytes == 0


def test_a_loop_over_steps_is_separated_from_the_dispatch(hlo):
    actual = profile(hlo("loop"), steps=50, images_per_chip=16)
    assert actual.step.kernels == 4, "an inner loop of four trips"
    assert actual.step.collectives == {"all-reduce": 1} and actual.chain == 1
    # The copy of the dataset reads and writes its padded layouts.
    images = 32 * 32 * 8 * 45056 + 45000 * 32 * 32 * 128
    assert actual.dispatch.memory_bytes == images
    assert actual.dispatch.kernels == 0 and not +actual.dispatch.collectives


def test_host_transfers_float64_and_gathers_are_found(hlo):
    text = hlo("faults")
    assert host_transfers(text) == ["%custom-call.1", "%outfeed.1"]
    assert arrays_of_type(text, "f64") == ["%convert.1", "%add.1"]
    assert list(gathered(text, 100)) == [("%all-gather-start.1", (4 * 8 + 16 * 8) * 4 // 2)]
    assert list(gathered(text, 10_000)) == []


@pytest.mark.parametrize("name", ["step", "loop"])
def test_a_sound_program_has_no_such_finding(name, hlo):
    text = hlo(name)
    assert not host_transfers(text) and not arrays_of_type(text, "f64")
    assert not list(gathered(text, 1))
