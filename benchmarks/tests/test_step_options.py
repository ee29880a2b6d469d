"""The options of the step benchmark compute the same step as training."""

import dataclasses

import golden
import pytest

from benchmarks import cases, step_options
from benchmarks.cases import Case
from imta_jax.config import ModelConfig


@pytest.fixture(scope="module")
def result():
    settings = cases.case_config("cifar_5_exits")
    model = ModelConfig(backbone="msdnet", **golden.TINY)
    tiny = dataclasses.replace(settings, model=model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "case_config", lambda network: tiny)
        size = {"network": "tiny", "batch_size": 64, "rounds": 2, "steps": 2}
        yield step_options.run(size)


def test_every_option_computes_the_same_losses(result):
    losses = {row["option"]: row["losses"] for row in result["rows"]}
    assert list(losses) == list(step_options.OPTIONS)
    plain = losses[step_options.PLAIN]
    assert losses["rematerialize"] == pytest.approx(plain, rel=1e-5)
    assert losses["steps in one dispatch"] == pytest.approx(plain, rel=1e-5)
    for rounded in ("bfloat16", "accumulate_parts=4"):  # Batch statistics differ.
        assert losses[rounded] != plain and losses[rounded] == pytest.approx(plain, rel=0.05)


def test_gradient_accumulation_takes_less_memory(result):
    memory = {row["option"]: row["memory_mb"] for row in result["rows"]}
    assert 0 < memory["accumulate_parts=4"] < 0.6 * memory[step_options.PLAIN]
    assert result["summary"]["memory of accumulate_parts=4"] == pytest.approx(
        memory["accumulate_parts=4"] / memory[step_options.PLAIN]
    )


def test_the_cases_are_presets():
    for size in (step_options.FULL, step_options.QUICK):
        assert cases.model_fields(size["network"])["num_exits"] > 1
        assert Case(size["network"], size["batch_size"]).dataset_info.num_classes == 10
