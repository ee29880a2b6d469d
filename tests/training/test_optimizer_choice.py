"""Optimizers by name: what they see of packed parameters, multipliers, clipping, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imta_jax
from imta_jax.config import PhaseOneConfig
from imta_jax.errors import InputError
from imta_jax.runtime.registry import OPTIMIZERS
from imta_jax.training.optimizer import check_optimizer, phase_optimizer
from imta_jax.training.packing import MAX_PACKED_SIZE, Packing
from imta_jax.training.state import named_arrays

RATE = 0.05


def draw(seed):
    """Parameters of very different norms, of which all but one are packed."""
    generator = np.random.default_rng(seed)
    sizes = {"kernel": (3, 3, 2, 4), "scale": (5,), "bias": (5,)}
    tree = {
        name: (10.0**i) * generator.normal(size=size).astype(np.float32)
        for i, (name, size) in enumerate(sizes.items())
    }
    large = generator.normal(size=(2, MAX_PACKED_SIZE)).astype(np.float32)
    return {"backbone": tree, "heads": {"kernel": large}}


def settings(**changes):
    return PhaseOneConfig(total_epochs=1, batch_size=1, **changes)


def trained(tx, tree_of=lambda tree: tree, steps=3):
    """Parameters after some steps on the trees of `tree_of`."""
    params = jax.tree.map(jnp.asarray, tree_of(draw(0)))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(tree_of(draw(step + 1)), state, params)
        params = optax.apply_updates(params, updates)
    return params


def trained_packed(**changes):
    packing = Packing.from_tree(draw(0), lambda leaf: True)
    assert packing.packed == (True, True, True, False)
    tx = phase_optimizer(settings(**changes), lambda step: RATE)
    return trained(tx, packing.pack).unpack()


def test_a_required_option_is_named_with_its_field(monkeypatch):
    def make(learning_rate, trust):
        raise AssertionError

    monkeypatch.setitem(OPTIMIZERS._components, "own", make)
    with pytest.raises(InputError, match=r"'own'.*'trust'.*phase_one\.optimizer_options\.trust"):
        phase_optimizer(settings(optimizer="own", weight_decay=0), lambda step: RATE)


ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-6}
CASES = {
    "adamw": (
        {"optimizer": "adamw", "optimizer_options": ADAM, "weight_decay": 0.1},
        optax.adamw(RATE, **ADAM, weight_decay=0.1),
    ),
    "lamb": (
        {"optimizer": "lamb", "optimizer_options": ADAM, "weight_decay": 0.1},
        optax.lamb(RATE, **ADAM, weight_decay=0.1),
    ),
    "lars": ({"optimizer": "optax:lars"}, optax.lars(RATE, weight_decay=1e-4)),
    "lion": (
        {"optimizer": "optax:lion", "weight_decay": 0.1},
        optax.lion(RATE, weight_decay=0.1),
    ),
    "adafactor": (
        {
            "optimizer": "optax:adafactor",
            "optimizer_options": {"min_dim_size_to_factor": 2},
            "weight_decay": 0,
        },
        optax.adafactor(RATE, min_dim_size_to_factor=2),
    ),
    "clipped lamb": (
        {"optimizer": "lamb", "gradient_clip_norm": 2.0},
        optax.chain(optax.clip_by_global_norm(2.0), optax.lamb(RATE, weight_decay=1e-4)),
    ),
    "clipped sgd": (
        {"gradient_clip_norm": 2.0},
        optax.chain(
            optax.clip_by_global_norm(2.0),
            optax.add_decayed_weights(1e-4),
            optax.sgd(RATE, momentum=0.9, nesterov=True),
        ),
    ),
}


@pytest.mark.parametrize(("changes", "plain"), CASES.values(), ids=CASES)
def test_packing_does_not_change_an_optimizer(changes, plain):
    chex.assert_trees_all_close(trained_packed(**changes), trained(plain), rtol=2e-5, atol=2e-6)


def test_multipliers_scale_the_learning_rate_of_their_parameters():
    multipliers = (("kernel$", 0.5), ("^backbone", 3.0))
    actual = trained_packed(learning_rate_multipliers=multipliers)

    def plain(rate):
        return trained(
            optax.chain(
                optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9, nesterov=True)
            )
        )

    halved, tripled = plain(RATE * 0.5), plain(RATE * 3)
    expected = {
        "backbone": {**tripled["backbone"], "kernel": halved["backbone"]["kernel"]},
        "heads": halved["heads"],
    }
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_an_optimizer_of_another_package_sees_names_and_arrays():
    seen = {}

    @imta_jax.register_optimizer("recording")
    def recording(learning_rate, *, factor):
        def update(updates, state, params):
            seen.update({name: x.shape for name, x in updates.items()})
            return jax.tree.map(lambda x: -factor * x, updates), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    try:
        changes = {"optimizer": "recording", "optimizer_options": {"factor": 2.0}}
        trained_packed(**changes, weight_decay=0)
    finally:
        OPTIMIZERS._components.pop("recording")
    assert seen == {name: x.shape for name, x in named_arrays(draw(0)).items()}
    assert "backbone.kernel" in seen


REJECTED = [
    ({"optimizer": "adam"}, r"phase_one\.optimizer 'adam'.*first: adamw"),
    ({"optimizer": "optax:adam"}, r"phase_one\.weight_decay must be 0.*'optax:adam'.*0\.0001"),
    (
        {"optimizer": "adamw", "optimizer_options": {"beta1": 0.5}},
        r"option of config\.phase_one\.optimizer 'adamw'.*'beta1'.*: b1",
    ),
    (
        {"optimizer": "lamb", "optimizer_options": {"weight_decay": 0.1}},
        r"'weight_decay' of config\.phase_one\.optimizer 'lamb'",
    ),
    ({"optimizer": "math:sqrt", "weight_decay": 0}, r"phase_one\.optimizer 'math:sqrt'"),
    ({"optimizer": "builtins:dict"}, r"phase_one\.optimizer 'builtins:dict'.*Gradient"),
    ({"optimizer": "no_such_package:make"}, r"phase_one\.optimizer.*no_such_package"),
]


@pytest.mark.parametrize(("changes", "message"), REJECTED)
def test_an_optimizer_that_cannot_be_built_raises_with_field_and_value(changes, message):
    with pytest.raises((ValueError, ModuleNotFoundError), match=message):
        check_optimizer(settings(**changes))


def test_an_optimizer_that_needs_more_than_gradients_raises_before_training():
    changes = {"optimizer": "optax:lbfgs", "weight_decay": 0}
    with pytest.raises(ValueError, match=r"phase_one\.optimizer 'optax:lbfgs'.*value"):
        check_optimizer(settings(**changes), jax.eval_shape(lambda: draw(0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate_multipliers": (("(", 2.0),)}, r"learning_rate_multipliers.*'\('"),
        ({"learning_rate_multipliers": (("a", 0.0),)}, r"'a' must be above 0.*0.*freeze"),
        ({"learning_rate_multipliers": (("a",),)}, r"learning_rate_multipliers.*2 entries"),
        ({"freeze": ("*",)}, r"phase_one\.freeze.*'\*'"),
        ({"gradient_clip_norm": -1.0}, r"gradient_clip_norm.*at least 0.*-1"),
    ],
)
def test_invalid_fields_raise_with_field_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)
