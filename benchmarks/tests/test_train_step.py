"""The arithmetic of the train-step benchmark, and equal results of its contenders."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import golden
import numpy as np
import pytest

from benchmarks import cases, first_step, jax_steps, step_contenders, train_step
from benchmarks.cases import Case
from imta_jax.config import ModelConfig
from imta_jax.models import resolve_model_config

OURS, EAGER, COMPILED = ("ours", "batches"), ("pytorch", "eager"), ("pytorch", "compiled")
CASE, OTHER = Case("cifar_5_exits", 64), Case("imagenet_step_4_published", 256, "bfloat16")


def seconds(*values):
    return np.array(values, float)


TIMINGS = {
    ("phase_one", OURS): seconds(2, 4, 2),
    ("forward", OURS): seconds(1, 1, 1),
    ("phase_two", OURS): seconds(1, 1, 1),
    ("phase_one", EAGER): seconds(3, 9, 3),
    ("phase_one", COMPILED): seconds(1, 4, 4),
    ("forward", EAGER): seconds(2, 2, 2),
    ("forward", COMPILED): seconds(3, 1, 3),
}


def test_pytorch_is_compared_in_its_fastest_mode():
    assert train_step.best(TIMINGS, "phase_one", "pytorch").tolist() == [3, 9, 3]
    assert train_step.best(TIMINGS, "forward", "pytorch").tolist() == [2, 2, 2]


def test_ratios_are_computed_per_round():
    ratios = {name: values.tolist() for name, values in train_step.ratios(TIMINGS).items()}
    assert ratios == {
        "forward_vs_torch": [2, 2, 2],
        "phase_one_vs_torch": [1.5, 2.25, 1.5],
        "phase_two_vs_phase_one": [0.5, 0.25, 0.5],
    }


def test_least_ratios_use_all_modes_and_rounds():
    ratios = train_step.least_ratios(TIMINGS)
    assert ratios == {
        "forward_vs_torch": 1.0,
        "phase_one_vs_torch": 0.5,
        "phase_two_vs_phase_one": 0.5,
    }


def test_the_summary_has_the_worst_case():
    faster = {key: values / 2 if key[1] == OURS else values for key, values in TIMINGS.items()}
    faster["phase_two", OURS] = seconds(0.9, 0.9, 0.9)
    summary = train_step.summarize({CASE: TIMINGS, OTHER: faster})
    assert summary["phase_one_vs_torch"] == 1.5 and summary["forward_vs_torch"] == 2
    assert summary["phase_two_vs_phase_one"] == 0.9
    assert summary[f"phase_one_vs_torch ({OTHER.name})"] == 3
    assert summary["spread"][CASE.name]["phase_one_vs_torch"]["most"] == 2.25


def test_without_pytorch_the_summary_has_no_ratio_to_it():
    summary = train_step.summarize({CASE: {k: v for k, v in TIMINGS.items() if k[1] == OURS}})
    assert {name for name in summary if "torch" in name} == set()
    assert summary["phase_two_vs_phase_one"] == 0.5


def test_hours_follow_the_schedule_of_the_paper():
    ours, pytorch = train_step.whole_run_rows(CASE, TIMINGS)
    # 703 full batches of 64 in 45,000 images, 300 and 180 times.
    assert ours["phase_one_hours"] == pytest.approx(2 * 703 * 300 / 3600, rel=1e-3)
    assert ours["phase_two_hours"] == pytest.approx(1 * 703 * 180 / 3600, rel=1e-3)
    assert ours["phase_one_images_per_second"] == 32
    assert pytorch["phase_one_hours"] == pytest.approx(3 * 703 * 300 / 3600, rel=1e-3)
    assert "phase_two_hours" not in pytorch
    (row, _) = train_step.whole_run_rows(OTHER, TIMINGS)
    assert row["phase_one_hours"] == pytest.approx(2 * (1_231_167 // 256) * 90 / 3600, rel=1e-3)


def test_a_contender_with_other_numbers_raises():
    difference = train_step._difference([1.0, 2.1], [1.0, 2.0])
    assert difference == pytest.approx(0.05)
    train_step._check_agreement(OTHER, {"pytorch: eager, forward": difference})
    for value in (difference, float("nan")):
        with pytest.raises(ValueError, match=r"cifar_5_exits.*pytorch: eager, forward"):
            train_step._check_agreement(CASE, {"pytorch: eager, forward": value})


def test_gpus_have_more_cases_and_modes():
    arguments = SimpleNamespace(device="cuda", network=None, batch=None, precision=None)
    on_cuda = train_step.cases(arguments, train_step.CIFAR, 2)
    assert {(c.network, c.batch_size) for c in on_cuda} == {
        *((network, size) for network in train_step.CIFAR for size in (64, 256)),
        (train_step.IMAGENET, 256),
    }
    assert {c.precision for c in on_cuda} == set(cases.PRECISIONS)
    arguments.device = "cpu"
    assert [c.name for c in train_step.cases(arguments, train_step.CIFAR[:1], 2)] == [CASE.name]
    modes = {device: step_contenders.modes_for(device) for device in ("cpu", "cuda")}
    assert set(modes["cpu"]) < set(modes["cuda"]) and ("pytorch", "compiled") in modes["cpu"]
    assert {mode for framework, mode in modes["cuda"] if framework == "ours"} == {
        "batches",
        "resident",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device=cuda", "--without-torch"], 'JAX computes on "cpu" here.*[cuda]'),
        (["--device=tpu", "--without-torch"], 'JAX computes on "cpu" here.*[tpu]'),
        (["--device=gpu"], "--device.*'gpu'"),
        (["--batch=0"], "--batch.*0"),
        (["--threads=-3"], "--threads.*-3"),
        (["--network=foo"], "'foo'.*cifar_7_exits"),
        (["--compile-times", "foo"], "'foo'.*cifar_7_exits"),
    ],
)
def test_unavailable_devices_and_invalid_values_exit_with_the_valid_ones(
    options, message, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--out=none.json", *options])
    monkeypatch.setattr(train_step.measurement, "in_own_process", lambda f, *a: f(*a))
    with pytest.raises(SystemExit):
        train_step.main()
    assert re.search(message.replace("[", "\\["), capsys.readouterr().err)


def test_a_missing_pytorch_is_reported_with_the_option_to_skip_it(monkeypatch):
    assert step_contenders.unavailable("cpu", with_torch=False) == ""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "--without-torch" in step_contenders.unavailable("cpu", with_torch=True)


def test_the_launch_command_trains_the_named_network(tmp_path, monkeypatch):
    monkeypatch.setitem(first_step.DATA, "cifar", (8, 3, 100, 4))
    data = first_step.write_images(tmp_path / "images.npz", "cifar")
    with np.load(data) as arrays:
        assert arrays["train_images"].shape == (100, 8, 8, 3) and len(arrays["test_labels"]) == 2
    command = first_step.launch_command("cifar_7_exits", "cifar", data, tmp_path, "cold")
    assert command[1].endswith("launch.py") and "--config.model.preset=cifar_7_exits" in command


def test_seconds_to_line_stops_at_the_line():
    program = "print('before'); print('phase_one step 1/9: loss'); import time; time.sleep(60)"
    command = [sys.executable, "-c", program]
    assert 0 < first_step.seconds_to_line(command, first_step.LINE, "cpu") < 30
    with pytest.raises(RuntimeError, match="other output"):
        first_step.seconds_to_line([sys.executable, "-c", "print('other output')"], "step", "cpu")


def test_batches_and_on_device_images_give_the_same_losses(monkeypatch):
    settings = cases.case_config("cifar_5_exits")
    model = ModelConfig(backbone="msdnet", **golden.TINY)
    tiny = dataclasses.replace(settings, model=model)
    monkeypatch.setattr(cases, "case_config", lambda network: tiny)
    case = Case("tiny", 4)
    batches = jax_steps.JaxSteps(case, on_device=False)
    on_device = jax_steps.JaxSteps(case, on_device=True)
    assert cases.model_fields("tiny") == resolve_model_config(model)
    assert all((batches.weights[n] == on_device.weights[n]).all() for n in batches.weights)
    np.testing.assert_allclose(batches.phase_one(2), on_device.phase_one(2), rtol=1e-4)
    assert len(batches.forward(1)) == golden.TINY["num_exits"]


def test_the_pytorch_network_matches_the_recorded_numbers():
    pytest.importorskip("torch")
    from benchmarks.torch_msdnet import verify

    deviations = verify()
    assert len(deviations) == 7 and max(deviations.values()) <= 1
