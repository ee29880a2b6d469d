"""A step's time is told by kind of operation; how long anything takes is not tested."""

import jax
import jax.numpy as jnp
import pytest
import tiny_run

from benchmarks import operations, our_steps
from benchmarks.operations import Origin, Program, kind_of, own_times
from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.layout import Layout


def test_time_within_an_event_is_not_counted_twice():
    events = [("c", 22, 6), ("a", 0, 10), ("b", 2, 3), ("loop", 20, 30), ("c", 30, 5)]
    assert own_times(events) == {"a": 7, "b": 3, "loop": 19, "c": 11}
    assert sum(own_times(events).values()) == 10 + 30


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_convolutions_and_their_gradients_are_told_apart(layout, size, stride):
    x, kernel = jnp.ones((16, 16, 16, 16)), jnp.ones((size, size, 16, 16))

    def loss(x, kernel):
        return (convolve(x, kernel, stride, layout) ** 2).sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    program = Program(step.lower(x, kernel).compile().as_text())
    found = {kind for kind in map(program.kind, program.origins) if "convolutions" in kind[0]}
    products = {kind for kind in found if kind[0].endswith("products")}
    name = f"{size}x{size} convolutions, stride {stride}: products"
    assert products == {(name, "forward"), (name, "backward")}
    assert all(kind[0].startswith(f"{size}x{size} ") for kind in found)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("jit(step)/jvp(jit(batch_normalize))/sub", ("normalisation, with ReLU", "forward")),
        ("jit(step)/transpose(jvp())/mul", ("everything else", "backward")),
        ("jit(step)/mul", ("optimiser and checks", "update")),
        ("", ("copies", "")),
    ],
)
def test_what_is_no_convolution_goes_by_its_path(name, kind):
    assert kind_of(Origin(name, product=False)) == kind


def test_all_of_a_steps_time_has_a_kind(monkeypatch):
    config = tiny_run.tiny_config("").to_dict()
    monkeypatch.setattr(our_steps, "settings", lambda network: config)
    result = operations.run({"network": "cifar_5_exits", "batch_size": 2, "steps": 2})
    for phase in operations.KINDS:
        *rows, whole = (row for row in result["rows"] if row["part"] == phase)
        assert whole["operations"] == operations.ALL and whole["whole_ms"] > 0
        assert sum(row["ms"] for row in rows) == pytest.approx(whole["ms"], rel=1e-2)
        known = {row["operations"].partition(":")[0] for row in rows}
        assert {"1x1 convolutions, stride 1", "3x3 convolutions, stride 1"} <= known
        assert "other convolutions" not in known
        ways = {row["way"] for row in rows if row["operations"].endswith("products")}
        # Of the frozen backbone nothing has a gradient in phase II.
        assert ways == ({"forward", "backward"} if phase == "phase_one" else {"forward"})
