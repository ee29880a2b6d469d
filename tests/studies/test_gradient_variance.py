"""The variance of gradients per stage satisfies Eq. 1, 2, 5 and 6 of the paper."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.models import build_classifier
from imta_jax.studies.gradient_variance import gradient_variance
from imta_jax.training import PhaseOneObjective

EXITS = 3


@pytest.fixture(scope="module")
def classifier():
    fields = tiny_run.NETWORK | {"num_exits": EXITS}
    return build_classifier(fields, num_classes=3, image_shape=(16, 16, 1), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def measured(classifier):
    """Variances by (equilibrium, exit_losses). Checks that the classifier does not change."""
    images, labels = tiny_run.draw_images(32, 0)
    pixels = jnp.asarray(images / 255 - 0.4, jnp.float32)
    halves = [(pixels[:16], jnp.asarray(labels[:16])), (pixels[16:], jnp.asarray(labels[16:]))]
    settings = (("off", "sum"), ("all", "sum"), ("coarsest", "sum"), ("off", "mean"))
    before = nnx.state(classifier)
    variances = {s: gradient_variance(classifier, PhaseOneObjective(*s), halves) for s in settings}
    chex.assert_trees_all_equal(nnx.state(classifier), before)
    return variances


def test_a_stage_has_gradients_of_its_own_and_later_losses_only(measured):
    losses = measured["off", "sum"].losses
    np.testing.assert_array_equal(np.tril(losses, -1), 0)
    assert (losses[np.triu_indices(EXITS)] > 0).all()


def test_equilibrium_scales_contributions_as_in_equation_5(measured):
    plain, balanced = measured["off", "sum"].losses, measured["all", "sum"].losses
    remaining = np.arange(EXITS, 0, -1.0)[:, None]  # k - i + 1
    np.testing.assert_allclose(balanced * remaining**2, plain, rtol=1e-4)
    np.testing.assert_allclose(
        measured["all", "sum"].stages * remaining[:, 0] ** 2,
        measured["off", "sum"].stages,
        rtol=1e-4,
    )


def test_equation_6_bounds_the_variance_under_equilibrium(measured):
    largest = measured["off", "sum"].losses.max(axis=1)
    assert (measured["all", "sum"].stages <= 2 * largest).all()


def test_averaging_the_losses_divides_all_variances_equally(measured):
    np.testing.assert_allclose(
        measured["off", "mean"].stages * EXITS**2, measured["off", "sum"].stages, rtol=1e-4
    )


def test_rescaling_only_the_coarsest_map_gives_variances_in_between(measured):
    # Nothing is rescaled at the last stage, which has no later exit.
    off, coarsest, every = (measured[e, "sum"].stages for e in ("off", "coarsest", "all"))
    assert (every[:-1] < coarsest[:-1]).all() and (coarsest[:-1] < off[:-1]).all()
    np.testing.assert_allclose(every[-1], off[-1], rtol=1e-4)


def test_the_last_stage_has_the_variance_of_its_single_loss(measured):
    variances = measured["off", "sum"]
    assert variances.stages[-1] == pytest.approx(variances.losses[-1, -1], rel=1e-4)


def test_empty_batches_are_rejected(classifier):
    with pytest.raises(ValueError, match="batches"):
        gradient_variance(classifier, PhaseOneObjective("off"), [])
