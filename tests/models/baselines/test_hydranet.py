"""HydraNet: the gate, the branches that run, their costs, and the search for the paper's sizes."""

import re

import baseline_networks as baselines
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.config import RunConfig
from imta_jax.models import MultiExitClassifier
from imta_jax.models.baselines.class_clusters import gate_loss
from imta_jax.models.baselines.hydranet import select_branches, spread_weights
from imta_jax.models.costs import exit_costs
from imta_jax.studies import hydra_search
from imta_jax.techniques import cross_entropy
from imta_jax.training.gate_objective import GateSupervisedObjective
from imta_jax.training.objectives import PhaseOneObjective
from imta_jax.training.setup import phase_one_objective

LABELS = jnp.arange(4) % baselines.CLASSES


# Sizes.


def test_the_best_configuration_of_the_search_is_the_one_of_the_presets():
    deviation, best = hydra_search.search()[0]
    assert deviation < 1.5
    assert (best.stem_groups, best.gate, best.combiner) == (2, "branch", "project")
    for d in hydra_search.HYDRA_COSTS:
        fields = baselines.PRESETS[f"hydra_res_{d}"]
        assert fields["depths"] == (d, d, d)
        assert (fields["branches"], fields["active_branches"]) == (best.branches, best.active)


def test_sizes_deviate_from_table_one_by_at_most_the_documented_percentages():
    best = hydra_search.search()[0][1]
    for d, (params, macs) in hydra_search.deviations(best).items():
        assert abs(params) < 0.11
        assert -1.5 < macs < 0 and (d == 1 or macs > -0.65)


def test_d_in_table_one_is_not_the_number_of_branches():
    """Both columns are linear in d with a negative intercept. A stem and a classifier cost more."""
    d = np.array(list(hydra_search.HYDRA_COSTS))
    for column in np.transpose(list(hydra_search.HYDRA_COSTS.values())):
        slope, intercept = np.polyfit(d, column, 1)
        np.testing.assert_allclose(slope * d + intercept, column, rtol=0.01)
        assert intercept < 0 < slope


@pytest.mark.parametrize("d", [1, 2])  # The closed form is linear in d.
def test_the_closed_form_equals_the_costs_of_the_traced_network(d: int):
    costs, best = baselines.preset_costs(f"hydra_res_{d}", 100), hydra_search.search()[0][1]
    assert (costs.params[-1], costs.macs[-1]) == hydra_search.cost(best, d)
    assert abs(costs.published_ops[-1] / 1e6 - hydra_search.HYDRA_COSTS[d][1]) < 1


def test_costs_count_the_active_branches_and_the_parameters_of_all():
    fields = {"backbone": "hydranet"} | baselines.TINY["hydranet"]
    costs = [
        exit_costs(
            baselines.abstract(
                fields | {"active_branches": k}, baselines.CLASSES, baselines.IMAGE_SHAPE
            )
        )
        for k in (1, 2, 3, 4)
    ]
    macs = np.array([cost.macs[-1] for cost in costs])
    width, pixels = 8, 4  # Of a branch's map: 8x8 images, halved twice.
    branch = pixels * 9 * (4 * width + width * width) + width * width
    np.testing.assert_array_equal(np.diff(macs), branch)
    assert len({cost.params[-1].item() for cost in costs}) == 1


# Gate and branches.


def test_a_gate_gives_k_branches_weights_that_sum_to_one():
    scores = jax.random.normal(jax.random.key(0), (6, 5))
    indices, weights = select_branches(scores, 3)
    spread = spread_weights(indices, weights, 5)
    np.testing.assert_array_equal((spread != 0).sum(axis=1), 3)
    np.testing.assert_allclose(spread.sum(axis=1), 1, rtol=1e-6)
    best_not_selected = jnp.where(spread == 0, scores, -jnp.inf).max(axis=1)
    worst_selected = jnp.where(spread != 0, scores, jnp.inf).min(axis=1)
    assert (worst_selected >= best_not_selected).all()


def test_a_single_image_runs_only_the_selected_branches():
    network = baselines.tiny("hydranet")
    images = baselines.images()
    batched = baselines.jitted_logits(network, images)
    single = jnp.concatenate(
        [baselines.jitted_logits(network, images[n : n + 1]) for n in range(4)], axis=1
    )
    np.testing.assert_allclose(single, batched, rtol=1e-5, atol=1e-6)
    # 5 convolutions in the stem, 2 in the gate, 2 per branch that runs. A batch runs all branches.
    assert number_of_convolutions(network, 1) == 5 + 2 + 2 * 2
    assert number_of_convolutions(network, 2) == 5 + 2 + 2 * 4


def number_of_convolutions(network: MultiExitClassifier, count: int) -> int:
    """Convolutions in the traced program for a batch of `count` images."""
    graphdef, state = nnx.split(network)

    def forward(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state, copy=True)(x)

    shape = jax.ShapeDtypeStruct((count, *baselines.IMAGE_SHAPE), jnp.float32)
    return len(re.findall(r"name=convolve\b", str(jax.make_jaxpr(forward)(state, shape))))


# Training.


def test_training_updates_the_gate_and_the_statistics_of_all_branches():
    network = baselines.tiny("hydranet")
    network.train()

    @nnx.jit
    def step(network: MultiExitClassifier) -> nnx.State:
        return nnx.grad(lambda n: cross_entropy(n(baselines.images()), LABELS).sum())(network)

    before = [jnp.array(b.blocks[0].last.norm.mean[...]) for b in network.backbone.branches]
    gradient = step(network)
    assert np.abs(gradient["backbone"]["gate"]["score"]["kernel"][...]).max() > 0
    for branch, old in zip(network.backbone.branches, before, strict=True):
        assert not np.array_equal(branch.blocks[0].last.norm.mean[...], old)


def test_the_gate_loss_has_the_branch_of_each_class_as_target():
    network = baselines.tiny("hydranet", class_clusters=(3, 0, 1))
    config = baselines.baseline_config("unused", "quickstart_hydra")
    objective = phase_one_objective(RunConfig.from_mapping(config))
    assert isinstance(objective, GateSupervisedObjective) and objective.gate_weight == 0.1

    @nnx.jit
    def losses(network: MultiExitClassifier) -> tuple[jax.Array, ...]:
        images = baselines.images()
        scores = network.backbone.gate(network.stem(images)[0])
        plain, _ = PhaseOneObjective("off")(network, images, LABELS)
        both, metrics = objective(network, images, LABELS)
        return both, plain, metrics.loss, scores

    both, plain, loss, scores = losses(network)
    np.testing.assert_allclose(loss.sum(), plain, rtol=1e-5)
    gate = gate_loss(scores, LABELS, np.array([3, 0, 1]))
    np.testing.assert_allclose(both - plain, 0.1 * gate, rtol=1e-4)


def test_a_network_without_a_gate_has_the_plain_objective():
    config = RunConfig.from_mapping(baselines.baseline_config("unused", "resnet_14"))
    assert phase_one_objective(config) == PhaseOneObjective("off")


@pytest.mark.parametrize("clusters", [(0, 1), (0, 1, 4), (0, -1, 2)])
def test_class_clusters_of_another_length_or_range_are_rejected(clusters: tuple[int, ...]):
    network = baselines.tiny("hydranet", class_clusters=clusters)
    actual = re.escape(str(clusters))
    with pytest.raises(ValueError, match=rf"config\.model\.class_clusters.*3.*{actual}"):
        network.backbone.clusters(baselines.CLASSES)
