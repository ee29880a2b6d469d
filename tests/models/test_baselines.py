"""The compared models: sizes against published facts, and the backbone contract on each of them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.cli.doctor import examine
from imta_jax.cli.run import run
from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.models import (
    NETWORK_PRESETS,
    MultiExitClassifier,
    build_classifier,
    with_collaborative_heads,
)
from imta_jax.models.baselines.class_clusters import (
    balanced_clusters,
    clusters_by_index,
    gate_loss,
    similarity_of_means,
)
from imta_jax.models.baselines.hydranet import select_branches, spread_weights
from imta_jax.models.costs import ExitCosts, exit_costs
from imta_jax.models.network_table import main, network_rows
from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.report.run.record import load_run
from imta_jax.studies import hydra_search
from imta_jax.techniques import cross_entropy, one_for_all_loss
from imta_jax.training.gate_objective import GateSupervisedObjective
from imta_jax.training.objectives import PhaseOneObjective
from imta_jax.training.phases import phase_one_objective

BASELINES = {name: f for name, f in NETWORK_PRESETS.items() if f["backbone"] != "msdnet"}
PHOTOGRAPHS, SMALL = (224, 224, 3), (32, 32, 3)

# Trainable parameters; 10 classes, 1000 for photographs.
PARAMETERS = {
    "resnet_14": 172_506,
    "resnet_20": 269_722,
    "resnet_26": 366_938,
    "resnet_32": 464_154,
    "resnet_38": 561_370,
    "resnet_44": 658_586,
    "resnet_18": 11_689_512,
    "resnet_34": 21_797_672,
    "resnet_50": 25_557_032,
    "densenet_16": 44_410,
    "densenet_22": 71_686,
    "densenet_28": 102_730,
    "densenet_34": 137_542,
    "densenet_40": 176_122,
    "densenet_46": 218_470,
    "densenet_121": 7_978_856,
    "densenet_121_growth_24": 4_697_992,
    "densenet_121_growth_30": 7_078_240,
    "googlenet": 7_005_832,
    "resnet_mc": 2_103_830,
    "densenet_mc": 4_868_998,
    "quickstart_resnet_mc": 670_384,
    "quickstart_densenet_mc": 698_000,
}

# Tiny networks of every kind; small maps are what keeps tests quick.
SHAPE, CLASSES = (8, 8, 1), 3
TINY = {
    "resnet": {"stem": "cifar", "channels": 4, "depths": (1, 1, 1), "exits": (1, 2)},
    "densenet": {
        "stem": "cifar",
        "channels": 4,
        "growth_rate": 3,
        "depths": (2, 2),
        "bottleneck": True,
        "reduction": 0.5,
        "exits": (1, 3),
    },
    "hydranet": {"channels": 2, "depths": (1, 1, 1), "branches": 4, "active_branches": 2},
}


def is_of_photographs(fields: dict) -> bool:
    return fields.get("stem") == "imagenet" or fields["backbone"] == "googlenet"


def abstract(fields: dict, num_classes: int, shape: tuple[int, int, int]) -> MultiExitClassifier:
    """A network without arrays: enough to count."""
    arguments = {"num_classes": num_classes, "image_shape": shape}
    return nnx.eval_shape(lambda: build_classifier(fields, **arguments, rngs=nnx.Rngs(0)))


@functools.cache
def measured(preset: str, num_classes: int | None = None) -> ExitCosts:
    fields = BASELINES[preset]
    shape, usual = (PHOTOGRAPHS, 1000) if is_of_photographs(fields) else (SMALL, 10)
    return exit_costs(abstract(fields, num_classes or usual, shape))


def tiny(backbone: str, **changes) -> MultiExitClassifier:
    fields = {"backbone": backbone} | TINY[backbone] | changes
    classifier = build_classifier(fields, num_classes=CLASSES, image_shape=SHAPE, rngs=nnx.Rngs(0))
    # Statistics that are not those of a fresh network, so that normalisation is seen, and that let
    # the small values of a narrow network through every ReLU.
    for _, norm in nnx.iter_graph(classifier):
        if isinstance(norm, BatchNorm):
            norm.mean[...] = norm.mean[...] - 0.1
            norm.var[...] = norm.var[...] * 1.5
    classifier.eval()
    return classifier


def images(count: int = 4, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, *SHAPE))


@nnx.jit
def at_once(classifier: MultiExitClassifier, images: jax.Array) -> jax.Array:
    return classifier(images)


# Sizes.


def test_every_baseline_but_hydranets_has_a_pinned_parameter_count():
    """Hydra-Res is held to its closed form below."""
    assert PARAMETERS.keys() == {n for n, f in BASELINES.items() if "branches" not in f}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_baselines_have_exactly_their_pinned_parameters(preset: str):
    assert measured(preset).params[-1] == PARAMETERS[preset]


# Millions of parameters as printed by He et al. (CIFAR: Table 6; ImageNet: as their published
# weights have it) and by Huang et al.'s published weights; to the last printed digit.
@pytest.mark.parametrize(
    ("preset", "printed"),
    [
        ("resnet_20", "0.27"),
        ("resnet_32", "0.46"),
        ("resnet_44", "0.66"),
        ("resnet_18", "11.69"),
        ("resnet_34", "21.80"),
        ("resnet_50", "25.56"),
        ("densenet_121", "7.98"),
    ],
)
def test_parameters_are_the_published_ones_to_the_printed_digit(preset: str, printed: str):
    decimals = len(printed.split(".")[1])
    assert f"{PARAMETERS[preset] / 1e6:.{decimals}f}" == printed


# Millions of multiply-adds, as printed, or as read off the published figures (to half a percent).
# Conventions differ by up to 1.5 % (ReLUs, pooling), so ours must lie within 1 % by one of the two.
# A hundred classes instead of ten would add 0.1 % at most.
@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("resnet_20", 40.6),
        ("resnet_14", 26.6),
        ("resnet_26", 55),
        ("resnet_38", 83),
        ("resnet_32", 69),
        ("resnet_44", 97),
        ("resnet_18", 1820),
        ("resnet_34", 3660),
        ("resnet_50", 4100),
        ("densenet_121", 2850),
        ("densenet_121_growth_24", 1640),
        ("densenet_121_growth_30", 2530),
        ("googlenet", 1570),
        ("densenet_16", 20.0),
        ("densenet_22", 31.5),
        ("densenet_28", 44.5),
        ("densenet_34", 58.0),
        ("densenet_40", 73.0),
        ("densenet_46", 89.5),
    ],
)
def test_costs_are_the_published_ones(preset: str, published: float):
    costs = measured(preset)
    ours = (costs.macs[-1] / 1e6, costs.published_ops[-1] / 1e6)
    assert min(abs(value / published - 1) for value in ours) < 0.01


@pytest.mark.parametrize(
    ("preset", "layers"), [("resnet_44", 44), ("resnet_mc", 62), ("densenet_mc", 52)]
)
def test_networks_have_the_layers_of_their_name(preset: str, layers: int):
    """The stem, two convolutions per residual block or one per dense layer, transitions, linear."""
    fields = BASELINES[preset]
    if fields["backbone"] == "resnet":
        assert 1 + 2 * sum(fields["depths"]) + 1 == layers
    else:
        assert 1 + sum(fields["depths"]) + len(fields["depths"][1:]) + 1 == layers


def test_multi_exit_baselines_have_seven_exits_that_cost_more_and_more():
    for preset in ("resnet_mc", "densenet_mc"):
        costs = measured(preset)
        assert len(costs.macs) == 7 and (np.diff(costs.macs, prepend=0) > 0).all()


def test_quickstart_baselines_cost_about_as_much_as_the_quickstart():
    fields = NETWORK_PRESETS["quickstart"]
    ours = exit_costs(abstract(fields, 10, (32, 32, 1))).macs[-1]
    for preset in ("quickstart_resnet_mc", "quickstart_densenet_mc"):
        cost = exit_costs(abstract(BASELINES[preset], 10, (32, 32, 1))).macs[-1]
        assert cost == pytest.approx(ours, rel=0.25)


# Contract.


@pytest.mark.parametrize("backbone", TINY)
def test_stage_by_stage_equals_all_exits_at_once(backbone: str):
    network = tiny(backbone)

    @nnx.jit
    def stepwise(network: MultiExitClassifier, images: jax.Array) -> jax.Array:
        state, carry, collected = network.stem(images), None, []
        for i in range(network.num_exits):
            state, logits, carry = network.advance(i, state, carry)
            assert isinstance(state, tuple)
            collected.append(logits)
        return jnp.stack(collected)

    found = stepwise(network, images())
    assert found.std(axis=1).min() > 0
    assert found.shape == (network.num_exits, 4, CLASSES)
    assert network.num_exits == len(TINY[backbone].get("exits", ())) + 1
    np.testing.assert_allclose(found, at_once(network, images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", TINY)
def test_abstract_construction_has_the_real_shapes(backbone: str):
    found, expected = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.state(network))
        for network in (
            abstract({"backbone": backbone} | TINY[backbone], CLASSES, SHAPE),
            tiny(backbone),
        )
    )
    assert found == expected


@pytest.mark.parametrize("backbone", TINY)
def test_the_table_adds_up_to_the_traced_costs(backbone: str):
    network = tiny(backbone)
    costs, table = exit_costs(network), network_rows(network)
    exits = [row for row in table if row["part"].startswith("exit")]
    assert [row["total multiply-adds"] for row in exits] == costs.macs.tolist()
    assert [row["total parameters"] for row in exits] == costs.params.tolist()


def test_the_table_prints_from_the_command_line(capsys):
    main(["resnet_14"])
    told = capsys.readouterr().out
    assert "layer 6" in told and f"{PARAMETERS['resnet_14']:,}" in told


def test_a_parameter_free_shortcut_drops_pixels_and_pads_channels():
    network = tiny("resnet", exits=())
    (block,) = network.backbone.stages[0][1:2]
    block.last.norm.scale[...] *= 0  # the residual path is silent
    block.last.norm.mean[...] *= 0
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 5, 5, 4)))
    y = block(x)
    np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 4:], 0)


# The paper's techniques on other backbones.


def test_gradient_equilibrium_is_equation_five_on_a_resnet():
    """Each later loss reaches stage i with 1 / (k - i + 1) of its plain gradient, i from 1."""
    network = tiny("resnet")
    labels = jnp.arange(4) % CLASSES
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def gradients(equilibrium: str) -> nnx.State:
        def losses(params: nnx.State) -> jax.Array:
            merged = nnx.merge(graphdef, params, rest, copy=True)
            return cross_entropy(merged(images(), equilibrium), labels)

        return jax.jit(jax.jacrev(losses))(params)

    plain, ours = gradients("off"), gradients("all")
    k = network.num_exits
    for i in range(k):
        for later in range(i, k):
            for a, b in zip(
                jax.tree.leaves(plain["backbone"]["stages"][i]),
                jax.tree.leaves(ours["backbone"]["stages"][i]),
                strict=True,
            ):
                np.testing.assert_allclose(b[later], a[later] / (k - i), rtol=1e-3, atol=1e-6)
                assert np.abs(a[later]).max() > 0


@pytest.mark.parametrize("backbone", ["resnet", "densenet"])
def test_phase_two_trains_heads_on_other_backbones(backbone: str):
    """Collaboration and distillation: a finite loss, whose gradient reaches every head."""
    network = with_collaborative_heads(
        tiny(backbone), {"transfer": "linear"}, num_classes=CLASSES, rngs=nnx.Rngs(1)
    )
    labels = jnp.arange(4) % CLASSES
    heads = nnx.All(nnx.Param, lambda path, value: path[0] == "heads")

    @nnx.jit
    def step(network: MultiExitClassifier) -> tuple[jax.Array, nnx.State]:
        def loss(network: MultiExitClassifier) -> jax.Array:
            logits = network(images())
            teacher = jax.lax.stop_gradient(logits[-1])
            settings = {"alpha": 0.7, "temperature": 4.0, "reduction": "batch"}
            settings |= {"temperature_squared": False, "last_exit": "mixed"}
            return one_for_all_loss(logits, labels, teacher, **settings)

        return nnx.value_and_grad(loss, argnums=nnx.DiffState(0, heads))(network)

    value, gradient = step(network)
    assert np.isfinite(value) and value > 0
    for linear in gradient["heads"]["linears"].values():
        assert np.abs(linear["kernel"][...]).max() > 0


# Hydra-Res.


def test_the_search_finds_the_configuration_that_is_built():
    off, best = hydra_search.search()[0]
    assert off < 1.5
    assert (best.stem_groups, best.gate, best.combiner) == (2, "branch", "project")
    for d in hydra_search.TABLE_ONE:
        fields = BASELINES[f"hydra_res_{d}"]
        assert fields["depths"] == (d, d, d)
        assert (fields["branches"], fields["active_branches"]) == (best.branches, best.active)


def test_hydra_rows_lie_as_near_to_table_one_as_stated():
    best = hydra_search.search()[0][1]
    for d, (params, macs) in hydra_search.deviations(best).items():
        assert abs(params) < 0.11
        assert -1.5 < macs < 0 and (d == 1 or macs > -0.65)


def test_no_number_of_branches_explains_table_one_as_d():
    """Both columns are lines whose start, what a stem and a classifier would cost, is negative."""
    d = np.array(list(hydra_search.TABLE_ONE))
    for column in np.transpose(list(hydra_search.TABLE_ONE.values())):
        slope, start = np.polyfit(d, column, 1)
        np.testing.assert_allclose(slope * d + start, column, rtol=0.01)
        assert start < 0 < slope


@pytest.mark.parametrize("d", [1, 2])
def test_the_closed_form_is_what_the_traced_network_costs(d: int):
    """It is linear in d, so two of them stand for all."""
    costs, best = measured(f"hydra_res_{d}", 100), hydra_search.search()[0][1]
    assert (costs.params[-1], costs.macs[-1]) == hydra_search.cost(best, d)
    assert abs(costs.published_ops[-1] / 1e6 - hydra_search.TABLE_ONE[d][1]) < 1


def test_a_gate_gives_exactly_k_branches_weights_that_sum_to_one():
    scores = jax.random.normal(jax.random.key(0), (6, 5))
    indices, weights = select_branches(scores, 3)
    spread = spread_weights(indices, weights, 5)
    np.testing.assert_array_equal((spread != 0).sum(axis=1), 3)
    np.testing.assert_allclose(spread.sum(axis=1), 1, rtol=1e-6)
    unchosen = jnp.where(spread == 0, scores, -jnp.inf).max(axis=1)
    assert (jnp.where(spread != 0, scores, jnp.inf).min(axis=1) >= unchosen).all()


def test_one_image_runs_only_the_selected_branches():
    network = tiny("hydranet")
    batch = at_once(network, images())
    alone = jnp.concatenate([at_once(network, images()[n : n + 1]) for n in range(4)], axis=1)
    np.testing.assert_allclose(alone, batch, rtol=1e-5, atol=1e-6)
    graphdef, state = nnx.split(network)

    def operations(count: int) -> int:
        def run(state: nnx.State, x: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state, copy=True)(x)

        shape = jax.ShapeDtypeStruct((count, *SHAPE), jnp.float32)
        return len(re.findall(r"name=convolve\b", str(jax.make_jaxpr(run)(state, shape))))

    # Stem 5, gate 2 and 2 per branch that runs; the batch runs all 4.
    assert (operations(1), operations(2)) == (5 + 2 + 2 * 2, 5 + 2 + 2 * 4)


def test_costs_count_the_branches_that_run_and_the_parameters_of_all():
    fields = {"backbone": "hydranet"} | TINY["hydranet"]
    by_active = [
        exit_costs(abstract(fields | {"active_branches": k}, CLASSES, SHAPE)) for k in (1, 2, 3, 4)
    ]
    macs = np.array([costs.macs[-1] for costs in by_active])
    width, pixels = 8, 4  # of a branch's map: 8x8 images, halved twice
    branch = pixels * 9 * (4 * width + width * width) + width * width
    np.testing.assert_array_equal(np.diff(macs), branch)
    assert len({costs.params[-1].item() for costs in by_active}) == 1


def test_training_reaches_the_gate_and_moves_statistics_of_all_branches():
    network = tiny("hydranet")
    network.train()

    @nnx.jit
    def step(network: MultiExitClassifier) -> nnx.State:
        labels = jnp.arange(4) % CLASSES
        return nnx.grad(lambda n: cross_entropy(n(images()), labels).sum())(network)

    before = [jnp.array(b.blocks[0].last.norm.mean[...]) for b in network.backbone.branches]
    gradient = step(network)
    assert np.abs(gradient["backbone"]["gate"]["score"]["kernel"][...]).max() > 0
    for branch, old in zip(network.backbone.branches, before, strict=True):
        assert not np.array_equal(branch.blocks[0].last.norm.mean[...], old)


def test_a_gate_is_supervised_by_the_branch_of_each_class():
    network = tiny("hydranet", class_clusters=(3, 0, 1))
    labels = jnp.arange(4) % CLASSES
    objective = phase_one_objective(
        RunConfig.from_mapping(baseline_config("unused", "quickstart_hydra"))
    )
    assert isinstance(objective, GateSupervisedObjective) and objective.gate_weight == 0.1

    @nnx.jit
    def losses(network: MultiExitClassifier) -> tuple[jax.Array, ...]:
        scores = network.backbone.gate(network.stem(images())[0])
        plain, _ = PhaseOneObjective("off")(network, images(), labels)
        both, metrics = objective(network, images(), labels)
        return both, plain, metrics.loss, scores

    both, plain, loss, scores = losses(network)
    np.testing.assert_allclose(loss.sum(), plain, rtol=1e-5)
    gate = gate_loss(scores, labels, np.array([3, 0, 1]))
    np.testing.assert_allclose(both - plain, 0.1 * gate, rtol=1e-4)
    config = RunConfig.from_mapping(baseline_config("unused", "resnet_14"))
    assert phase_one_objective(config) == PhaseOneObjective("off")


@pytest.mark.parametrize("clusters", [(0, 1), (0, 1, 4), (0, -1, 2)])
def test_class_clusters_that_do_not_fit_are_refused(clusters: tuple[int, ...]):
    network = tiny("hydranet", class_clusters=clusters)
    with pytest.raises(ValueError, match=r"config.model.class_clusters.*from 0 to 3.*found"):
        network.backbone.clusters(CLASSES)


# Clusters of classes.


def test_balanced_clusters_find_planted_groups():
    generator = np.random.default_rng(0)
    truth = generator.permutation(np.arange(12) % 3)
    centres = np.eye(3)[truth] * 4
    labels = np.repeat(np.arange(12), 5)
    features = centres[labels] + generator.normal(0, 0.3, (60, 3))
    found = balanced_clusters(similarity_of_means(features, labels, 12), 3)
    assert len({(a, b) for a, b in zip(truth, found, strict=True)}) == 3


@pytest.mark.parametrize(("classes", "count"), [(10, 3), (100, 20), (5, 5), (4, 1)])
def test_clusters_are_of_one_size_or_one_apart(classes: int, count: int):
    random = np.random.default_rng(1).normal(size=(classes, classes))
    for clusters in (
        clusters_by_index(classes, count),
        balanced_clusters(random + random.T, count),
    ):
        sizes = np.bincount(clusters, minlength=count)
        assert len(sizes) == count and sizes.max() - sizes.min() <= 1


def test_clusters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"num_clusters.*1 to 4.*found 5"):
        clusters_by_index(4, 5)
    with pytest.raises(ValueError, match="symmetric"):
        balanced_clusters(np.arange(9).reshape(3, 3), 2)
    with pytest.raises(ValueError, match="class 1 has no image"):
        similarity_of_means(np.ones((2, 3)), np.array([0, 2]), 3)


def test_gate_loss_is_the_cross_entropy_of_the_clusters():
    scores = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    labels, clusters = jnp.array([3, 0]), np.array([2, 1, 1, 0])
    expected = -(np.log(0.5) + np.log(0.8)) / 2
    assert gate_loss(scores, labels, clusters) == pytest.approx(expected, rel=1e-5)


# Bad input.


@pytest.mark.parametrize(
    ("backbone", "change", "message"),
    [
        ("resnet", {"growth_rate": 4}, "with backbone 'resnet': 'growth_rate'; valid"),
        ("resnet", {"num_exits": 3}, "with backbone 'resnet': 'num_exits'; valid"),
        ("densenet", {"branches": 4}, "with backbone 'densenet': 'branches'; valid"),
        ("hydranet", {"exits": (1,)}, "with backbone 'hydranet': 'exits'; valid"),
        ("resnet", {"stem": "imagnet"}, "config.model.stem 'imagnet'.*first: imagenet"),
        ("resnet", {"channels": 0}, "config.model.channels.*found 0"),
        ("resnet", {"depths": (1, 0)}, r"config.model.depths.*found \(1, 0\)"),
        ("resnet", {"depths": 3}, "config.model.depths.*found 3"),
        ("resnet", {"exits": (3,)}, r"config.model.exits.*1 to 2.*found \(3,\)"),
        ("resnet", {"exits": (2, 1)}, r"config.model.exits.*found \(2, 1\)"),
        ("densenet", {"reduction": 0.0}, "config.model.reduction.*found 0.0"),
        ("hydranet", {"active_branches": 5}, "config.model.active_branches.*branches=4; found 5"),
        ("hydranet", {"gate_weight": -1.0}, "config.model.gate_weight.*found -1.0"),
        ("hydranet", {"depths": (1, 1)}, r"config.model.depths.*3 integers.*found \(1, 1\)"),
        (
            "resnet",
            {"initialization": "torch"},
            "config.model.initialization 'torch'.*first: pytorch",
        ),
    ],
)
def test_bad_fields_are_refused_by_name(backbone: str, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny(backbone, **change)


def test_missing_fields_are_listed():
    with pytest.raises(ValueError, match=r"config.model lacks depths, stem; set them"):
        build_classifier(
            {"backbone": "resnet", "channels": 4},
            num_classes=2,
            image_shape=SHAPE,
            rngs=nnx.Rngs(0),
        )


# Runs.


def baseline_config(source, preset: str, **changes):
    from configs import common, quickstart

    config = quickstart.get_config("baseline")
    config.model = common.network(preset)
    config.model.update(changes)
    config.data.update(source=str(source), validation_examples=24, pipeline="numpy", crop_padding=2)
    config.phase_one.update(total_epochs=1, batch_size=16, learning_rate=0.05)
    config.evaluation.update(batch_size=16)
    return config


def test_a_network_of_one_exit_is_trained_evaluated_and_reported(tmp_path, caplog):
    source = tiny_run.write_dataset(tmp_path / "thirds.npz")
    config = baseline_config(source, "resnet_14", channels=2, depths=(1, 1))
    run(config, tmp_path / "run")
    record = load_run(tmp_path / "run")
    assert len(record.exits) == 1
    assert record.threshold_methods is None
    assert "not reported" not in caplog.text
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_the_doctor_shows_other_backbones(tmp_path):
    source = tiny_run.write_dataset(tmp_path / "thirds.npz")
    config = RunConfig.from_mapping(baseline_config(source, "quickstart_resnet_mc", channels=2))
    told = examine(config, load_dataset(config.data), tmp_path)
    assert "model.exits                    (3, 4, 6)" in told and "layer 8" in told
