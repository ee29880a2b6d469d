"""The options that a step is timed with are those of training, and compute what it computes."""

import golden
import pytest

from benchmarks import our_steps, step_options
from benchmarks.step_contenders import Case


@pytest.fixture(scope="module")
def result():
    settings = our_steps.settings("cifar_5_exits")
    tiny = {"model": settings["model"] | golden.TINY | {"preset": "", "backbone": "msdnet"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(our_steps, "settings", lambda network: {**settings, **tiny})
        size = {"network": "tiny", "batch_size": 64, "rounds": 2, "steps": 2}
        yield step_options.run(size)


def test_every_option_takes_the_same_steps(result):
    losses = {row["option"]: row["losses"] for row in result["rows"]}
    assert list(losses) == list(step_options.OPTIONS)
    plain = losses[step_options.PLAIN]
    assert losses["rematerialize"] == pytest.approx(plain, rel=1e-5)
    assert losses["steps in one dispatch"] == pytest.approx(plain, rel=1e-5)
    for rounded in ("bfloat16", "accumulate_parts=4"):  # the latter: statistics of fewer images
        assert losses[rounded] != plain and losses[rounded] == pytest.approx(plain, rel=0.05)


def test_parts_take_less_memory(result):
    memory = {row["option"]: row["memory_mb"] for row in result["rows"]}
    assert 0 < memory["accumulate_parts=4"] < 0.6 * memory[step_options.PLAIN]
    assert result["summary"]["memory of accumulate_parts=4"] == pytest.approx(
        memory["accumulate_parts=4"] / memory[step_options.PLAIN]
    )


def test_its_cases_are_presets():
    for size in (step_options.FULL, step_options.QUICK):
        assert our_steps.model_fields(size["network"])["num_exits"] > 1
        assert Case(size["network"], size["batch_size"]).facts.num_classes == 10
