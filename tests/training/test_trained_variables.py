"""The variables that each phase trains and freezes, before and after steps."""

import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.distributed import data_mesh
from imta_jax.nn.pixels import normalize
from imta_jax.training.objectives import ALL_PARAMETERS, HEAD_PARAMETERS
from imta_jax.training.packing import unpacked
from imta_jax.training.state import named_arrays
from imta_jax.training.step import train_step

BATCHES = [tiny_run.draw_batch(16, seed) for seed in range(3)]
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.mark.parametrize("name", ["phase_one", "paper_phase_two", "published_phase_two"])
def test_every_parameter_is_trained_or_frozen(name, request):
    phase = request.getfixturevalue(name)
    state = phase.new_state()
    trained, frozen = named_arrays(state.trainable), named_arrays(state.rest)
    everything = named_arrays(nnx.state(phase.classifier))
    assert not trained.keys() & frozen.keys()
    assert trained.keys() | frozen.keys() == everything.keys()
    parameters = named_arrays(nnx.state(phase.classifier, nnx.Param))
    expected = {n for n in parameters if name == "phase_one" or n.startswith("heads.")}
    assert trained.keys() == expected


def test_head_parameters_are_a_subset_of_all_parameters(paper_phase_two):
    everything = named_arrays(nnx.state(paper_phase_two.classifier, ALL_PARAMETERS))
    heads = named_arrays(nnx.state(paper_phase_two.classifier, HEAD_PARAMETERS))
    assert heads.keys() < everything.keys()


def changed(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_phase_one_changes_every_parameter_and_statistic(phase_one):
    before, after = tiny_run.arrays_around_steps(phase_one, BATCHES)
    unchanged = before.keys() - changed(before, after)
    # Nothing reads the finer maps of the last layer. Their kernels decay; their zero biases do not.
    assert all(n.endswith(".norm.bias") and not before[n].any() for n in unchanged), unchanged
    assert not any(n.startswith(("backbone.exits.", "heads.")) for n in unchanged)


def test_paper_phase_two_changes_only_the_heads(paper_phase_two):
    before, after = tiny_run.arrays_around_steps(paper_phase_two, BATCHES)
    assert any("backbone" in n and n.endswith(".var") for n in before)
    assert any(n.startswith("phase_one_heads.") for n in before)
    assert changed(before, after) == {n for n in before if n.startswith("heads.")}


def test_published_phase_two_changes_heads_and_backbone_statistics(published_phase_two):
    before, after = tiny_run.arrays_around_steps(published_phase_two, BATCHES)
    statistics = {n for n in before if n.startswith("backbone.") and n.endswith((".mean", ".var"))}
    assert statistics
    assert changed(before, after) == statistics | {n for n in before if n.startswith("heads.")}


def count(jaxpr, primitive):
    """Number of occurrences of a primitive in a jaxpr and its nested jaxprs."""
    actual = sum(equation.primitive.name == primitive for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    actual += count(inner, primitive)
    return actual


def convolutions(phase):
    """Number of convolutions in a training step on several devices, and in a forward pass."""
    state = phase.new_state()
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.optimizer)
    step = train_step(*arguments, **tiny_run.PIXELS, mesh=data_mesh())
    step = jax.make_jaxpr(step)(state, BATCHES[0])

    def forward(images):
        params, rest = unpacked((state.trainable, state.rest))
        return nnx.merge(phase.graphdef, params, rest, copy=True)(images)

    images = normalize(BATCHES[0].images, **tiny_run.PIXELS)
    name = "conv_general_dilated"
    return count(step.jaxpr, name), count(jax.make_jaxpr(forward)(images).jaxpr, name)


def test_phase_two_computes_no_backbone_gradient(phase_one, paper_phase_two, published_phase_two):
    for phase in (paper_phase_two, published_phase_two):
        in_step, in_forward = convolutions(phase)
        assert in_step == in_forward > 0
    in_step, in_forward = convolutions(phase_one)
    assert in_step > 2 * in_forward
