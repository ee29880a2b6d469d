"""The precision of matrix products and convolutions in steps of training and evaluation."""

import re

import pytest
import tiny_run
from flax import nnx

from imta_jax.distributed import place_batch
from imta_jax.evaluation.collect import jit_logits
from imta_jax.training.step import jit_eval_step

_PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution)\b.*")


def precisions(lowered):
    """The precisions of all products of a program."""
    products = _PRODUCT.findall(lowered.as_text())
    assert products
    actual = [re.search(r"(HIGHEST|HIGH)\b", product) for product in products]
    return {match[1] if match else "DEFAULT" for match in actual}


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_a_training_step_has_the_precision_of_its_phase(precision, mesh):
    phase = tiny_run.make_phase("phase_one", mesh, phase_one__matmul_precision=precision)
    batch = place_batch(tiny_run.draw_batch(16, seed=0), mesh)
    assert precisions(phase.step.lower(phase.new_state(), batch)) == {precision.upper()}


def test_validation_and_evaluation_have_the_precision_of_the_evaluation(phase_one, mesh):
    batch, state = place_batch(tiny_run.draw_batch(16, seed=0), mesh), phase_one.new_state()
    options = {**tiny_run.PIXELS, "mesh": mesh, "matmul_precision": "highest"}
    step = jit_eval_step(phase_one.graphdef, **options)
    assert precisions(step.lower(state.trainable, state.rest, batch)) == {"HIGHEST"}
    graphdef, variables = nnx.split(phase_one.classifier)
    logits = jit_logits(graphdef, variables, **options)
    assert precisions(logits.lower(variables, batch)) == {"HIGHEST"}
