"""The time of a step by kind of operation. The times themselves are not tested."""

import jax
import jax.numpy as jnp
import pytest
import tiny_run

from benchmarks import cases, operations
from benchmarks.operations import Origin, Program, kind_of, self_times
from imta_jax.config import RunConfig
from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.channels_first import convolve_channels_first


def test_self_time_excludes_nested_events():
    events = [("c", 22, 6), ("a", 0, 10), ("b", 2, 3), ("loop", 20, 30), ("c", 30, 5)]
    assert self_times(events) == {"a": 7, "b": 3, "loop": 19, "c": 11}
    assert sum(self_times(events).values()) == 10 + 30


@pytest.mark.parametrize("convolution", [convolve, convolve_channels_first])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_convolutions_are_named_by_size_stride_and_direction(convolution, size, stride):
    x, kernel = jnp.ones((16, 16, 16, 16)), jnp.ones((size, size, 16, 16))

    def loss(x, kernel):
        return (convolution(x, kernel, stride) ** 2).sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    program = Program(step.lower(x, kernel).compile().as_text())
    kinds = {kind for kind in map(program.kind, program.origins) if "convolutions" in kind[0]}
    products = {kind for kind in kinds if kind[0].endswith("products")}
    name = f"{size}x{size} convolutions, stride {stride}: products"
    assert products == {(name, "forward"), (name, "backward")}
    assert all(kind[0].startswith(f"{size}x{size} ") for kind in kinds)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("jit(step)/jvp(jit(batch_normalize))/sub", ("normalization, with ReLU", "forward")),
        ("jit(step)/transpose(jvp())/mul", ("other", "backward")),
        ("jit(step)/mul", ("optimizer and checks", "update")),
        ("", ("copies", "")),
    ],
)
def test_other_operations_are_named_by_their_op_name(name, kind):
    assert kind_of(Origin(name, product=False)) == kind


def test_times_by_kind_add_up_to_the_step(monkeypatch):
    config = RunConfig.from_mapping(tiny_run.tiny_config("unused.npz"))
    monkeypatch.setattr(cases, "case_config", lambda network: config)
    result = operations.run({"network": "cifar_5_exits", "batch_size": 2, "steps": 2})
    for phase in operations.KINDS:
        *rows, total = (row for row in result["rows"] if row["part"] == phase)
        assert total["operations"] == operations.ALL and total["whole_ms"] > 0
        assert sum(row["ms"] for row in rows) == pytest.approx(total["ms"], rel=1e-2)
        known = {row["operations"].partition(":")[0] for row in rows}
        assert {"1x1 convolutions, stride 1", "3x3 convolutions, stride 1"} <= known
        assert "other convolutions" not in known
        passes = {row["way"] for row in rows if row["operations"].endswith("products")}
        # The backbone is frozen in phase II and has no backward pass.
        assert passes == ({"forward", "backward"} if phase == "phase_one" else {"forward"})
