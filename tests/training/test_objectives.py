"""The losses of both phases against NumPy and the techniques."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.distributed import place_batch
from imta_jax.nn.pixels import normalize
from imta_jax.techniques import one_for_all_loss
from imta_jax.training import PhaseOneObjective, PhaseTwoObjective
from imta_jax.training.objectives import masked_sums
from imta_jax.training.packing import unpacked
from imta_jax.training.state import named_arrays

BATCH = tiny_run.draw_batch(16, 0)
LABELS = jnp.asarray(BATCH.labels)
pytestmark = pytest.mark.usefixtures("compilation_cache")


def classifier_of(phase):
    """The classifier in the modes that the objective sets."""
    state = jax.tree.map(jnp.asarray, unpacked(phase.new_state()))
    return nnx.merge(phase.graphdef, state.trainable, state.rest, copy=True)


def logits_of(phase):
    """The classifier, its features and its logits of the batch."""
    classifier = classifier_of(phase)
    features = classifier.features(normalize(BATCH.images, **tiny_run.PIXELS))
    return classifier, features, classifier.logits(features)


def loss_of(phase):
    images = normalize(BATCH.images, **tiny_run.PIXELS)
    return phase.objective(classifier_of(phase), images, LABELS)


def mean_cross_entropy(logits, labels):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[:, np.arange(len(labels)), labels].mean(-1)


def test_phase_one_loss_is_the_summed_cross_entropy(phase_one):
    loss, metrics = loss_of(phase_one)
    _, _, logits = logits_of(phase_one)
    logits = np.asarray(logits, np.float64)
    expected = mean_cross_entropy(logits, BATCH.labels)
    correct = (logits.argmax(-1) == BATCH.labels).mean(-1)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.top1, 100 * correct, rtol=1e-6)


def test_the_mean_loss_is_the_sum_over_the_number_of_exits(phase_one):
    averaged = dataclasses.replace(phase_one.objective, exit_losses="mean")
    images = normalize(jnp.asarray(BATCH.images), **tiny_run.PIXELS)
    summed, mean = (
        float(objective(nnx.clone(phase_one.classifier), images, LABELS)[0])
        for objective in (phase_one.objective, averaged)
    )
    assert mean * phase_one.classifier.num_exits == pytest.approx(summed, rel=1e-6)


def test_equilibrium_changes_gradients_but_not_the_loss(phase_one, mesh):
    plain = tiny_run.make_phase("phase_one", mesh, phase_one__equilibrium="off")
    trained, losses = {}, {}
    for name, phase in (("all", phase_one), ("off", plain)):
        state, metrics = phase.step(phase.new_state(), place_batch(BATCH, mesh))
        trained[name] = tiny_run.to_host(named_arrays(state.trainable))
        losses[name] = metrics.loss
    chex.assert_trees_all_close(losses["all"], losses["off"], rtol=1e-6)
    on, off = trained["all"], trained["off"]
    different = {n for n in on if not np.allclose(on[n], off[n])}
    assert any(n.startswith("backbone.") for n in different)
    # The gradient of a head is that of its own loss, which is not rescaled.
    assert not any(n.startswith("heads.") for n in different)


def test_published_teacher_is_the_frozen_phase_one_exit(published_phase_two):
    classifier, features, logits = logits_of(published_phase_two)
    teacher = classifier.phase_one_logits(features)
    assert not np.allclose(teacher, logits[-1])
    expected = one_for_all_loss(
        logits,
        LABELS,
        teacher,
        alpha=0.1,
        temperature=3.0,
        temperature_squared=True,
        reduction="elements",
        last_exit="cross_entropy",
    )
    loss, _ = loss_of(published_phase_two)
    chex.assert_trees_all_close(loss, expected, rtol=1e-5)


def test_paper_teacher_is_the_last_exit_of_the_network(paper_phase_two):
    _, _, logits = logits_of(paper_phase_two)
    expected = one_for_all_loss(
        logits,
        LABELS,
        logits[-1],
        alpha=0.4,
        temperature=2.0,
        temperature_squared=paper_phase_two.objective.temperature_squared,
        reduction="batch",
    )
    loss, _ = loss_of(paper_phase_two)
    chex.assert_trees_all_close(loss, expected, rtol=1e-5)


def test_masked_sums_exclude_padding():
    logits = jax.random.normal(jax.random.key(0), (2, 6, 3))
    labels, mask = jnp.array([0, 1, 2, 0, 0, 0]), jnp.arange(6) < 4
    actual = jax.jit(masked_sums)(logits, labels, mask)
    expected = jax.jit(masked_sums)(logits[:, :4], labels[:4], mask[:4])
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)
    assert int(actual["count"]) == 4
    nats = mean_cross_entropy(np.asarray(logits[:, :4], np.float64), labels[:4])
    np.testing.assert_allclose(actual["loss"] / 4, nats, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("equilibrium", "every", "equilibrium 'every'.*coarsest, all, off"),
        ("exit_losses", "summed", "exit_losses 'summed'.*sum, mean"),
    ],
)
def test_phase_one_objective_rejects_invalid_values(field, value, message):
    with pytest.raises(ValueError, match=message):
        PhaseOneObjective(**{"equilibrium": "all", field: value})


OBJECTIVE = {
    "alpha": 0.5,
    "temperature": 1.0,
    "reduction": "batch",
    "temperature_squared": False,
    "last_exit": "mixed",
    "teacher": "own_last_exit",
    "backbone_statistics": "frozen",
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("alpha", 2.0, r"alpha.*2\.0"),
        ("alpha", float("nan"), "alpha.*nan"),
        ("temperature", 0.0, r"temperature.*0\.0"),
        ("reduction", "batches", "reduction 'batches'.*batch, elements"),
        ("last_exit", "crossentropy", "last_exit 'crossentropy'.*cross_entropy, mixed"),
        ("teacher", "last_exit", "teacher 'last_exit'.*own_last_exit, phase_one_last_exit"),
        ("backbone_statistics", "froze", "backbone_statistics 'froze'.*frozen, moving"),
    ],
)
def test_phase_two_objective_rejects_invalid_values(field, value, message):
    with pytest.raises(ValueError, match=message):
        PhaseTwoObjective(**{**OBJECTIVE, field: value})
