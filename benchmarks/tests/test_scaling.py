"""Communication volume of data parallelism, measured and modeled. Times are not tested."""

import json
import sys

import numpy as np
import pytest
import tiny_run

from benchmarks import interconnect, measurement, scaling
from benchmarks.interconnect import MACHINES, Machine
from imta_jax.data import dataset_info

SMALLEST = {"num_exits": 1, "growth_factors": (1,), "bottleneck_factors": (1,)}
PLAIN_RING = Machine(100, lambda n: interconnect.torus_us(n, axes=1), {"cifar": 10})
PROGRAM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (p: f32[4]) -> (f32[4], f32[3,3]) {
  %p = f32[4]{0} parameter(0)
  %q = f32[2]{0} slice(%p), slice={[0:2]}
  %first = (f32[4]{0}, f32[2]{0}) all-reduce(%p, %q), to_apply=%sum
  %own = f32[4]{0} get-tuple-element(%first), index=0
  %others = f32[2]{0} get-tuple-element(%first), index=1
  %second = (f32[4]{0}, /*index=1*/f32[2]{0}) all-reduce(%own, %q), to_apply=%sum
  %alone = f32[2]{0} get-tuple-element(%second), index=1
  %third = f32[2]{0} all-reduce(%alone), to_apply=%sum
  %kernel = f32[3,3]{1,0} fusion(%third, %others), kind=kLoop, calls=%sum
  ROOT %end = (f32[4]{0}, f32[3,3]{1,0}) tuple(%own, %kernel)
}
"""


def test_the_quickstart_has_the_shape_of_its_padded_images():
    module, info = scaling.FAMILIES["quickstart"]
    assert info == dataset_info(module.get_config().data)
    assert info.image_shape == (32, 32, 1)


def test_time_of_an_all_reduce_follows_the_formula():
    # For 4 MB each of 8 chips sends 7 MB at 50 GB/s; a ring of 8 has 14 hops of 1 us.
    assert interconnect.all_reduce_ms(8, 4e6, PLAIN_RING) == pytest.approx(0.14 + 0.014)
    assert interconnect.all_reduce_ms(8, 4e6, PLAIN_RING, count=10) == pytest.approx(0.14 + 0.14)
    assert interconnect.all_reduce_ms(1, 4e6, PLAIN_RING, count=10) == 0


@pytest.mark.parametrize("machine", [*MACHINES.values(), PLAIN_RING])
def test_more_chips_take_longer(machine):
    times = [interconnect.all_reduce_ms(2**k, 1e6, machine, count=100) for k in range(3, 12)]
    assert all(np.diff([0, *times]) > 0)


def test_latency_is_that_of_the_hops_of_the_topology():
    chips = (8, 64, 256)
    assert [interconnect.torus_us(n, axes=1) for n in chips] == [14, 126, 510]
    assert [interconnect.torus_us(n, axes=2) for n in chips] == [2 * (1 + 3), 2 * 14, 2 * 30]
    assert [interconnect.torus_us(n, axes=3) for n in chips] == [2 * 3, 2 * 9, 2 * (3 + 7 + 7)]
    assert [interconnect.nccl_us(n) for n in chips] == pytest.approx([15.2, 45.2, 65.2])


def test_outputs_of_a_combined_all_reduce_are_independent():
    assert scaling.messages(PROGRAM) == {"all_reduces": 3, "in_a_row": 2}


SENT = {"network": "cifar_7_exits", "gradient_bytes": 16e6, "all_reduce_bytes": 16.1e6}
SENT |= {"all_reduces": 300, "in_a_row": 100}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("given_ms", [{}, {"cifar_7_exits": 0.01}, {"imagenet_step_4": 1.0}])
def test_efficiency_is_at_most_one_and_higher_with_overlap(name, given_ms):
    before = 1.0
    for chips in scaling.CHIPS:
        row = interconnect.computed_row(chips, name, SENT, given_ms)
        assert row["kind"] == "computed" and row["chips"] == chips
        assert row["step_ms_is"] == ("given" if "cifar_7_exits" in given_ms else "assumed")
        worst, between, best = (
            row[f"efficiency_{overlap}_overlap"] for overlap in ("no", "gradients", "full")
        )
        assert 0 < worst <= between <= best <= 1 and worst <= before
        assert row["statistics_row_ms"] < row["statistics_ms"]
        before = worst


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The JSON of the script, with a tiny network and synthetic times."""
    out = tmp_path_factory.mktemp("scaling") / "result.json"
    seconds = {"one": [1.0, 2.0, 1.0], "apart": [1.25, 2.0, 1.5], "together": [1.6, 2.5, 2.0]}
    config = tiny_run.run_config("unused.npz", **{f"model__{k}": v for k, v in SMALLEST.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "case_of", lambda name: (config, tiny_run.INFO))
        patch.setattr(measurement, "in_own_process", lambda function, *args: function(*args))
        times = {name: np.array(values) for name, values in seconds.items()}
        patch.setattr(scaling, "weak_scaling", lambda rounds, block: times)
        patch.setattr(sys, "argv", ["", "--quick", f"--out={out}", "--step_ms=cifar_7_exits=2.5"])
        scaling.main()
    assert str(out.parent) not in out.read_text()
    return json.loads(out.read_text())


def test_every_row_says_what_it_is(result):
    rows = [(row["part"], row["kind"]) for row in result["rows"]]
    sent = [("bytes", "measured")] * 2 + [("bytes", "derived")]
    assert rows == sent + [("weak_scaling", "measured")] * 3 + [("computed", "computed")] * 18
    assert {row["step_ms_is"] for row in result["rows"][-18:]} == {"assumed", "given"}
    assert {"hardware", "versions", "seeds", "notes", "targets"} <= result.keys()


def test_summary_has_the_headlines(result):
    summary = result["summary"]
    assert summary["all_reduce_bytes_vs_parameters"] == result["rows"][0]["to_gradients"]
    assert (
        summary["weak_scaling_efficiency"] == summary["spread"]["weak_scaling_efficiency"]["median"]
    )
    assert summary["weak_scaling_efficiency"] == 0.625  # of 1 / 1.6, 2 / 2.5 and 1 / 2
    assert summary["efficiency_of_two_apart"] == 0.8


def test_a_step_sends_gradients_and_statistics_of_batches(result):
    one, two, derived = result["rows"][:3]
    assert one["trained_parameters"] * 4 == one["gradient_bytes"] > two["gradient_bytes"] > 0
    for row in (one, two):
        assert row["other_collectives"] == "none" and 1 <= row["in_a_row"] <= row["all_reduces"]
        assert row["all_reduce_bytes"] > row["gradient_bytes"]
    assert one["in_a_row"] > one["normalisations"] > 0 == two["normalisations"]
    # Two sums per channel forwards (backwards, the gradients of scale and shift are all it takes),
    # and a loss and an accuracy per exit.
    beyond = 4 * (2 * one["normalised_channels"] + 2 * SMALLEST["num_exits"])
    # On CPUs the gradients of the narrow 3x3 kernels, 1 to 4 and 2 to 2 channels, are those
    # of column pairs (`imta_jax.nn.convolution`): 24 numbers where there are 9.
    beyond += 4 * (24 - 9) * (1 * 4 + 2 * 2)
    assert one["all_reduce_bytes"] == one["gradient_bytes"] + beyond
    assert {name: one[name] for name in derived} == derived | {
        "kind": "measured",
        "network": "cifar_7_exits",
    }
