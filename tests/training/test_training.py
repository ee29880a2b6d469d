"""The training step: what each phase trains and freezes, its loss, and its options."""

import dataclasses
import logging

import jax
import numpy as np
import optax
import pytest
import tiny_run
from flax import nnx

from imta_jax.config import CheckpointConfig, LogConfig
from imta_jax.distributed import data_mesh, place_batch
from imta_jax.nn.pixels import normalize
from imta_jax.techniques import one_for_all_loss
from imta_jax.training import NonFiniteLossError, PhaseTwoObjective
from imta_jax.training.callbacks import default_callbacks
from imta_jax.training.checkpoints import CheckpointStore
from imta_jax.training.feed import host_feed
from imta_jax.training.loop import TrainingLoop
from imta_jax.training.objectives import ALL_PARAMETERS, HEAD_PARAMETERS, ExitMetrics
from imta_jax.training.optimizer import sgd, step_schedule
from imta_jax.training.packing import packed_like, unpacked
from imta_jax.training.state import create_state, named_arrays
from imta_jax.training.step import jit_batch_step, train_step

BATCHES = [tiny_run.draw_batch(16, seed) for seed in range(3)]


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    with tiny_run.compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def mesh():
    return data_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def phase_one(mesh):
    return tiny_run.make_phase("phase_one", mesh)


@pytest.fixture(scope="module")
def paper(mesh):
    sweep = {"phase_two__alpha": 0.4, "phase_two__temperature": 2.0}  # the paper gives neither
    return tiny_run.make_phase("phase_two", mesh, **sweep)


@pytest.fixture(scope="module")
def published(mesh):
    return tiny_run.make_phase("phase_two", mesh, "published")


def after_steps(phase, batches=BATCHES):
    """The named arrays of a fresh state before and after a step on each batch."""
    state = phase.new_state()
    before = tiny_run.to_host(named_arrays(state.trainable) | named_arrays(state.rest))
    for batch in batches:
        state, _ = phase.step(state, place_batch(batch, phase.mesh))
    return before, tiny_run.to_host(named_arrays(state.trainable) | named_arrays(state.rest))


def moved(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


# ----- optimizer


def pytorch_sgd(param, gradients, rates, momentum, nesterov, weight_decay):
    """torch.optim.SGD's update, restated; yields the parameter after every step."""
    buffer = np.zeros_like(param)
    for gradient, rate in zip(gradients, rates, strict=True):
        decayed = gradient + weight_decay * param
        buffer = momentum * buffer + decayed
        param = param - rate * (decayed + momentum * buffer if nesterov else buffer)
        yield param


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_equals_pytorch_at_every_step(nesterov, weight_decay):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(8, 5)).astype(np.float32)
    start = rng.normal(size=5).astype(np.float32)
    schedule = step_schedule(0.1, (0.5,), 0.1, total_steps=8)
    tx = sgd(schedule, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)
    expected = pytorch_sgd(start, gradients, [0.1] * 4 + [0.01] * 4, 0.9, nesterov, weight_decay)
    params, state = jax.numpy.asarray(start), tx.init(start)
    for gradient, wanted in zip(gradients, expected, strict=True):
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "drops", "at_epochs"),
    [(300, (0.5, 0.75), (150, 225)), (180, (0.5, 0.75), (90, 135)), (90, (1 / 3, 2 / 3), (30, 60))],
)
@pytest.mark.parametrize("steps_per_epoch", [1, 7, 703, 4804])
def test_learning_rate_drops_at_the_papers_epochs(epochs, drops, at_epochs, steps_per_epoch):
    schedule = step_schedule(0.1, drops, 0.1, epochs * steps_per_epoch)
    for i, epoch in enumerate(at_epochs):
        first = epoch * steps_per_epoch
        assert float(schedule(first - 1)) == pytest.approx(0.1 * 0.1**i)
        assert float(schedule(first)) == pytest.approx(0.1 * 0.1 ** (i + 1))
    assert float(schedule(epochs * steps_per_epoch - 1)) == pytest.approx(0.001)


def test_drops_at_the_same_step_multiply():
    schedule = step_schedule(0.1, (0.5, 0.5), 0.1, total_steps=4)
    assert [float(schedule(i)) for i in range(4)] == pytest.approx([0.1, 0.1, 0.001, 0.001])
    short = step_schedule(0.1, (0.5, 0.75), 0.1, total_steps=1)  # both round to the same step
    assert float(short(0)) * float(short(1)) > 0


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_a_learning_rate_must_be_above_zero(rate):
    with pytest.raises(ValueError, match=f"learning_rate.*found {rate}"):
        step_schedule(rate, (0.5,), 0.1, 10)


@pytest.mark.parametrize("drops", [(1.5,), (-0.1, 0.5), (150, 225)])
def test_drops_must_be_fractions_of_the_training(drops):
    with pytest.raises(ValueError, match=r"learning_rate_drops.*found \("):
        step_schedule(0.1, drops, 0.1, 10)


# ----- trained and frozen variables


@pytest.mark.parametrize("name", ["phase_one", "paper", "published"])
def test_every_parameter_is_trained_or_frozen(name, request):
    phase = request.getfixturevalue(name)
    state = phase.new_state()
    trained, frozen = named_arrays(state.trainable), named_arrays(state.rest)
    everything = named_arrays(nnx.state(phase.classifier))
    assert not trained.keys() & frozen.keys()
    assert trained.keys() | frozen.keys() == everything.keys()
    parameters = named_arrays(nnx.state(phase.classifier, nnx.Param))
    wanted = {n for n in parameters if name == "phase_one" or n.startswith("heads.")}
    assert trained.keys() == wanted


def test_phase_one_changes_every_parameter_and_statistic(phase_one):
    before, after = after_steps(phase_one)
    still = before.keys() - moved(before, after)
    # Nothing reads the finer maps of the last layer: their kernels decay, biases of 0 stay.
    assert all(n.endswith(".norm.bias") and not before[n].any() for n in still), still
    assert not any(n.startswith(("backbone.exits.", "heads.")) for n in still)


def test_paper_phase_two_changes_only_the_heads(paper):
    before, after = after_steps(paper)
    assert any("backbone" in n and n.endswith(".var") for n in before)
    assert any(n.startswith("phase_one_heads.") for n in before)
    assert moved(before, after) == {n for n in before if n.startswith("heads.")}


def test_published_phase_two_changes_heads_and_backbone_statistics(published):
    before, after = after_steps(published)
    statistics = {n for n in before if n.startswith("backbone.") and n.endswith((".mean", ".var"))}
    assert statistics
    assert moved(before, after) == statistics | {n for n in before if n.startswith("heads.")}


def count(jaxpr, primitive):
    """Number of occurrences of a primitive in a jaxpr and its nested jaxprs."""
    found = sum(equation.primitive.name == primitive for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += count(inner, primitive)
    return found


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


def test_phase_two_computes_no_backbone_gradient(phase_one, paper, published):
    for phase in (paper, published):
        in_step, in_forward = convolutions(phase)
        assert in_step == in_forward > 0
    in_step, in_forward = convolutions(phase_one)
    assert in_step > 2 * in_forward


# ----- objectives


def classifier_of(phase):
    state = jax.tree.map(jax.numpy.asarray, unpacked(phase.new_state()))
    return nnx.merge(phase.graphdef, state.trainable, state.rest, copy=True)


def logits_of(phase, batch):
    """Logits of a phase's classifier in its training modes."""
    classifier = classifier_of(phase)
    features = classifier.features(normalize(batch.images, **tiny_run.PIXELS))
    return classifier, features, np.asarray(classifier.logits(features))


def mean_cross_entropy(logits, labels):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[:, np.arange(len(labels)), labels].mean(-1)


def loss_of(phase, batch):
    classifier = classifier_of(phase)
    images = normalize(batch.images, **tiny_run.PIXELS)
    return phase.objective(classifier, images, batch.labels)


def test_phase_one_loss_is_the_summed_cross_entropy(phase_one):
    loss, metrics = loss_of(phase_one, BATCHES[0])
    _, _, logits = logits_of(phase_one, BATCHES[0])
    expected = mean_cross_entropy(logits.astype(np.float64), BATCHES[0].labels)
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)
    right = (logits.argmax(-1) == BATCHES[0].labels).mean(-1)
    np.testing.assert_allclose(metrics.top1, 100 * right, rtol=1e-6)


def test_equilibrium_changes_gradients_but_not_the_loss(phase_one, mesh):
    plain = tiny_run.make_phase("phase_one", mesh, phase_one__equilibrium="off")
    ends, losses = {}, {}
    for name, phase in (("all", phase_one), ("off", plain)):
        state, metrics = phase.step(phase.new_state(), place_batch(BATCHES[0], mesh))
        ends[name] = tiny_run.to_host(named_arrays(state.trainable))
        losses[name] = np.asarray(metrics.loss)
    np.testing.assert_allclose(losses["all"], losses["off"], rtol=1e-6)
    different = {n for n in ends["all"] if not np.allclose(ends["all"][n], ends["off"][n])}
    assert any(n.startswith("backbone.") for n in different)
    # A head gets the gradient of its own loss only, so nothing is rescaled.
    assert not any(n.startswith("heads.") for n in different)


def test_published_teacher_is_the_frozen_phase_one_exit(published):
    classifier, features, logits = logits_of(published, BATCHES[0])
    teacher = np.asarray(classifier.phase_one_logits(features))
    assert not np.allclose(teacher, logits[-1])
    expected = one_for_all_loss(
        logits,
        BATCHES[0].labels,
        teacher,
        alpha=0.1,
        temperature=3.0,
        temperature_squared=True,
        reduction="elements",
        last_exit="cross_entropy",
    )
    loss, _ = loss_of(published, BATCHES[0])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_paper_teacher_is_the_own_last_exit(paper):
    _, _, logits = logits_of(paper, BATCHES[0])
    expected = one_for_all_loss(
        logits,
        BATCHES[0].labels,
        logits[-1],
        alpha=0.4,
        temperature=2.0,
        temperature_squared=paper.objective.temperature_squared,
        reduction="batch",
    )
    loss, _ = loss_of(paper, BATCHES[0])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


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
        ("alpha", 2.0, "alpha.*2.0"),
        ("alpha", float("nan"), "alpha.*nan"),
        ("temperature", 0.0, "temperature.*0.0"),
        ("reduction", "batches", "reduction 'batches'.*batch, elements"),
        ("last_exit", "crossentropy", "last_exit 'crossentropy'.*cross_entropy, mixed"),
        ("teacher", "last_exit", "teacher 'last_exit'.*own_last_exit, phase_one_last_exit"),
        ("backbone_statistics", "froze", "backbone_statistics 'froze'.*frozen, moving"),
    ],
)
def test_phase_two_objective_rejects_invalid_values(field, value, message):
    with pytest.raises(ValueError, match=message):
        PhaseTwoObjective(**{**OBJECTIVE, field: value})


# ----- the loop


def batches_from(epoch, start_step):
    """The same batches in every epoch."""
    return BATCHES[start_step:]


def make_loop(phase, folder, batches, step=None, **changes):
    """A loop over fixed batches, 2 epochs, whose validation returns zeros."""
    zeros = ExitMetrics(np.zeros(2), np.zeros(2))
    fields = {
        "phase": "phase_one",
        "total_epochs": 2,
        "steps_per_epoch": len(BATCHES),
        "batch_size": 16,
        "feed": host_feed("numpy", batches, step or phase.step, phase.mesh),
        "validate": lambda state: zeros,
        "learning_rate": lambda step: 0.1,
        "check_every_steps": 2,
        "callbacks": default_callbacks(
            folder,
            meta={},
            log=LogConfig(line_every_seconds=0),
            checkpoint=CheckpointConfig(every_steps=0),
            learning_rate=lambda step: 0.1,
        ),
    }
    return TrainingLoop(**{**fields, **changes})


def test_nothing_is_compiled_again_over_steps_and_epochs(phase_one, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "imta_jax"):
        make_loop(phase_one, tmp_path, batches_from).run(phase_one.new_state())
    assert "phase_one epoch 2/2" in caplog.text
    assert phase_one.step._cache_size() == 1


def test_training_reduces_the_loss(phase_one):
    state, losses = phase_one.new_state(), []
    for i in range(18):
        batch = tiny_run.draw_batch(16, seed=i % 3)
        state, metrics = phase_one.step(state, place_batch(batch, phase_one.mesh))
        losses.append(np.asarray(metrics.loss))
    first, last = np.mean(losses[:3], axis=0), np.mean(losses[-3:], axis=0)
    assert (last < 0.5 * first).all(), (first, last)


def test_a_non_finite_loss_raises_and_keeps_the_last_good_checkpoint(phase_one, tmp_path):
    ran = []

    def step(state, batch):
        ran.append(len(ran))
        if len(ran) == 5:  # The second step of the second epoch.
            state = with_last_bias(state, [0, np.nan, 0])
        return phase_one.step(state, batch)

    broken = make_loop(phase_one, tmp_path, batches_from, step=step, check_every_steps=50)
    with pytest.raises(NonFiniteLossError, match=r"step 5\b.*exit 2\b.*nan"):
        broken.run(phase_one.new_state())
    with CheckpointStore(tmp_path) as checkpoints:
        state, epoch = checkpoints.restore_latest(phase_one.new_state())
    assert epoch == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def with_last_bias(state, values):
    """Sets the bias of the last exit's linear layer."""
    names = list(named_arrays(state.trainable))
    leaves, structure = jax.tree.flatten(unpacked(state.trainable))
    leaves[names.index("heads.linears.1.bias")] = np.asarray(values, "float32")
    trainable = packed_like(structure.unflatten(leaves), state.trainable)
    return dataclasses.replace(state, trainable=trainable)


def test_a_halted_state_does_not_change(phase_one):
    batch = place_batch(BATCHES[0], phase_one.mesh)
    state, _ = phase_one.step(phase_one.new_state(), batch)
    state = with_last_bias(state, [3e38, -3e38, 3e38])  # Finite, but its loss is not.
    good = tiny_run.to_host((state.step, state.trainable, state.rest, state.opt_state))
    for _ in range(3):
        state, metrics = phase_one.step(state, batch)
        assert np.isfinite(metrics.loss).tolist() == [True, False]
    assert int(state.halted_at) == int(state.step) == 1
    found = (state.step, state.trainable, state.rest, state.opt_state)
    tiny_run.assert_same(found, good)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_head_parameters_are_a_subset_of_all_parameters(paper):
    everything = named_arrays(nnx.state(paper.classifier, ALL_PARAMETERS))
    heads = named_arrays(nnx.state(paper.classifier, HEAD_PARAMETERS))
    assert heads.keys() < everything.keys()


def test_a_step_rejects_images_that_are_not_uint8(phase_one, mesh):
    graphdef, _ = create_state(phase_one.classifier, ALL_PARAMETERS, phase_one.optimizer, mesh)
    arguments = (graphdef, phase_one.objective, ALL_PARAMETERS, phase_one.optimizer)
    step = jit_batch_step(train_step(*arguments, **tiny_run.PIXELS, mesh=mesh), mesh)
    floats = BATCHES[0]._replace(images=BATCHES[0].images.astype(np.float32))
    with pytest.raises(ValueError, match="uint8"):
        step(phase_one.new_state(), floats)


# ----- options of a phase


def test_rematerialization_gives_the_same_step(mesh, phase_one):
    again = tiny_run.make_phase("phase_one", mesh, phase_one__rematerialize=True)
    _, expected = after_steps(phase_one, BATCHES[:1])
    _, found = after_steps(again, BATCHES[:1])
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_rematerialization_stores_fewer_activations(phase_one):
    from imta_jax.cli.doctor import activation_bytes

    less = dataclasses.replace(phase_one.objective, rematerialize=True)
    stored, stored_again = (
        activation_bytes(phase_one.classifier, objective, 4)
        for objective in (phase_one.objective, less)
    )
    assert stored_again < 0.75 * stored  # Maps between stages and in exits are stored.


def test_the_mean_loss_is_the_sum_over_the_number_of_exits(mesh, phase_one):
    averaged = dataclasses.replace(phase_one.objective, exit_losses="mean")
    images = normalize(jax.numpy.asarray(BATCHES[0].images), **tiny_run.PIXELS)
    labels = jax.numpy.asarray(BATCHES[0].labels)
    whole, part = (
        float(objective(nnx.clone(phase_one.classifier), images, labels)[0])
        for objective in (phase_one.objective, averaged)
    )
    assert part * phase_one.classifier.num_exits == pytest.approx(whole, rel=1e-6)


def test_bfloat16_feature_maps_keep_float32_parameters(mesh):
    source = tiny_run.make_phase("phase_one", mesh)
    source.classifier.compute_dtype = jax.numpy.dtype("bfloat16")
    graphdef, state = create_state(source.classifier, ALL_PARAMETERS, source.optimizer, mesh)
    arguments = (graphdef, source.objective, ALL_PARAMETERS, source.optimizer)
    step = jit_batch_step(train_step(*arguments, **tiny_run.PIXELS, mesh=mesh), mesh)
    _, expected = after_steps(source, BATCHES[:1])
    state, metrics = step(state, place_batch(BATCHES[0], mesh))
    arrays = named_arrays(state.trainable) | named_arrays(state.rest)
    assert all(x.dtype == np.float32 for x in arrays.values() if x.dtype.kind == "f")
    assert np.isfinite(metrics.loss).all()
    # bfloat16 has eight bits of mantissa: close to the float32 step, but not equal.
    found = tiny_run.to_host(arrays)
    differences = [np.abs(found[n] - expected[n]).max() for n in expected]
    assert 0 < max(differences) < 0.1
