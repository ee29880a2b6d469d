"""The training-step benchmark's arithmetic, and that its contenders compute the same."""

import re
import sys
from types import SimpleNamespace

import golden
import numpy as np
import pytest

from benchmarks import first_step, our_steps, step_contenders, train_step
from benchmarks.step_contenders import Case
from imta_jax.models import resolve_model_config

OURS, EAGER, COMPILED = ("ours", "batches"), ("pytorch", "eager"), ("pytorch", "compiled")
CASE, OTHER = Case("cifar_5_exits", 64), Case("imagenet_step_4_published", 256, "bfloat16")


def seconds(*values):
    return np.array(values, float)


FOUND = {
    ("phase_one", OURS): seconds(2, 4, 2),
    ("forward", OURS): seconds(1, 1, 1),
    ("phase_two", OURS): seconds(1, 1, 1),
    ("phase_one", EAGER): seconds(3, 9, 3),
    ("phase_one", COMPILED): seconds(1, 4, 4),
    ("forward", EAGER): seconds(2, 2, 2),
    ("forward", COMPILED): seconds(3, 1, 3),
}


def test_pytorch_is_given_its_fastest_mode_of_each_kind():
    assert train_step.best(FOUND, "phase_one", "pytorch").tolist() == [3, 9, 3]
    assert train_step.best(FOUND, "forward", "pytorch").tolist() == [2, 2, 2]


def test_ratios_are_of_one_round_each():
    found = {name: values.tolist() for name, values in train_step.ratios(FOUND).items()}
    assert found == {
        "forward_vs_torch": [2, 2, 2],
        "phase_one_vs_torch": [1.5, 2.25, 1.5],
        "phase_two_vs_phase_one": [0.5, 0.25, 0.5],
    }


def test_least_times_are_over_all_modes():
    found = train_step.least_ratios(FOUND)
    assert found == {
        "forward_vs_torch": 1.0,
        "phase_one_vs_torch": 0.5,
        "phase_two_vs_phase_one": 0.5,
    }


def test_the_summary_names_the_worst_case():
    faster = {key: values / 2 if key[1] == OURS else values for key, values in FOUND.items()}
    faster["phase_two", OURS] = seconds(0.9, 0.9, 0.9)
    summary = train_step.summarise({CASE: FOUND, OTHER: faster})
    assert summary["phase_one_vs_torch"] == 1.5 and summary["forward_vs_torch"] == 2
    assert summary["phase_two_vs_phase_one"] == 0.9
    assert summary[f"phase_one_vs_torch ({OTHER.name})"] == 3
    assert summary["spread"][CASE.name]["phase_one_vs_torch"]["most"] == 2.25


def test_without_pytorch_there_is_no_ratio_to_it():
    summary = train_step.summarise({CASE: {k: v for k, v in FOUND.items() if k[1] == OURS}})
    assert {name for name in summary if "torch" in name} == set()
    assert summary["phase_two_vs_phase_one"] == 0.5


def test_hours_are_those_of_the_papers_schedule():
    ours, pytorch = train_step.whole_run_rows(CASE, FOUND)
    # 703 full batches of 64 in 45,000 images, 300 and 180 times.
    assert ours["phase_one_hours"] == pytest.approx(2 * 703 * 300 / 3600, rel=1e-3)
    assert ours["phase_two_hours"] == pytest.approx(1 * 703 * 180 / 3600, rel=1e-3)
    assert ours["phase_one_images_per_second"] == 32
    assert pytorch["phase_one_hours"] == pytest.approx(3 * 703 * 300 / 3600, rel=1e-3)
    assert "phase_two_hours" not in pytorch
    (row, _) = train_step.whole_run_rows(OTHER, FOUND)
    assert row["phase_one_hours"] == pytest.approx(2 * (1_231_167 // 256) * 90 / 3600, rel=1e-3)


def test_a_contender_that_computes_something_else_is_refused():
    apart = train_step._apart([1.0, 2.1], [1.0, 2.0])
    assert apart == pytest.approx(0.05)
    train_step._check_agreement(OTHER, {"pytorch: eager, forward": apart})
    for share in (apart, float("nan")):
        with pytest.raises(ValueError, match="not the same numbers"):
            train_step._check_agreement(CASE, {"pytorch: eager, forward": share})


def test_graphics_processors_measure_more():
    asked = SimpleNamespace(device="cuda", network=None, batch=None, precision=None)
    on_cuda = train_step.cases(asked, train_step.CIFAR, 2)
    assert {(c.network, c.batch_size) for c in on_cuda} == {
        *((network, size) for network in train_step.CIFAR for size in (64, 256)),
        (train_step.IMAGENET, 256),
    }
    assert {c.precision for c in on_cuda} == set(step_contenders.PRECISIONS)
    asked.device = "cpu"
    assert [c.name for c in train_step.cases(asked, train_step.CIFAR[:1], 2)] == [CASE.name]
    modes = {device: step_contenders.modes_for(device) for device in ("cpu", "cuda")}
    assert set(modes["cpu"]) < set(modes["cuda"]) and ("pytorch", "compiled") in modes["cpu"]
    assert {mode for framework, mode in modes["cuda"] if framework == "ours"} == {
        "batches",
        "resident",
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--device=cuda", "--without-torch"], 'JAX computes on "cpu" here.*[cuda]'),
        (["--device=tpu", "--without-torch"], 'JAX computes on "cpu" here.*[tpu]'),
        (["--device=gpu"], "invalid choice: 'gpu'"),
        (["--batch=0"], "0 is below 1"),
        (["--threads=-3"], "-3 is below 0"),
        (["--network=foo"], "invalid choice: 'foo'.*cifar_7_exits"),
        (["--compile-times", "foo"], "invalid choice: 'foo'.*cifar_7_exits"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(given, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--out=none.json", *given])
    monkeypatch.setattr(train_step.environment, "in_own_process", lambda f, *a: f(*a))
    with pytest.raises(SystemExit):
        train_step.main()
    assert re.search(told.replace("[", "\\["), capsys.readouterr().err)


def test_a_pytorch_that_is_not_there_or_broken_is_named(monkeypatch):
    assert step_contenders.hindrance("cpu", with_torch=False) == ""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "--without-torch" in step_contenders.hindrance("cpu", with_torch=True)


def test_the_launch_is_one_of_the_commands_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setitem(first_step.DATA, "cifar", (8, 3, 100, 4))
    data = first_step.write_images(tmp_path / "images.npz", "cifar")
    with np.load(data) as arrays:
        assert arrays["train_images"].shape == (100, 8, 8, 3) and len(arrays["test_labels"]) == 2
    command = first_step.launch_command("cifar_7_exits", "cifar", data, tmp_path, "cold")
    assert command[1].endswith("launch.py") and "--config.model.preset=cifar_7_exits" in command


def test_the_clock_stops_at_the_line():
    program = "print('before'); print('phase_one step 1/9: loss'); import time; time.sleep(60)"
    command = [sys.executable, "-c", program]
    assert 0 < first_step.seconds_to_line(command, first_step.LINE, "cpu") < 30
    with pytest.raises(RuntimeError, match="no such run"):
        first_step.seconds_to_line([sys.executable, "-c", "print('no such run')"], "step", "cpu")


def test_both_ways_of_ours_take_the_same_steps(monkeypatch):
    settings = our_steps.settings("cifar_5_exits")
    tiny = {"model": settings["model"] | golden.TINY | {"preset": "", "backbone": "msdnet"}}
    monkeypatch.setattr(our_steps, "settings", lambda network: {**settings, **tiny})
    case = Case("tiny", 4)
    batches, resident = (our_steps.OurSteps(case, resident=how) for how in (False, True))
    assert our_steps.model_fields("tiny") == resolve_model_config(tiny["model"])
    assert all((batches.weights[n] == resident.weights[n]).all() for n in batches.weights)
    np.testing.assert_allclose(batches.phase_one(2), resident.phase_one(2), rtol=1e-4)
    assert len(batches.forward(1)) == golden.TINY["num_exits"]


def test_the_pytorch_network_is_the_recorded_one():
    pytest.importorskip("torch")
    from benchmarks.torch_msdnet import prove

    shares = prove()
    assert len(shares) == 7 and max(shares.values()) <= 1
