"""Custom backbones and heads: contracts, errors, and phase II on their heads."""

import jax.numpy as jnp
import numpy as np
import own_package
import pytest
from flax import linen, nnx

from imta_jax.errors import InputError
from imta_jax.models import build_classifier, run_heads, with_collaborative_heads
from imta_jax.models.network_table import main
from imta_jax.runtime.registry import BACKBONES, HEADS
from imta_jax.techniques import IndependentHeads, TransferHeads

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
INFO = {"num_classes": 3, "image_shape": (8, 8, 1)}
PATH = "own_components.net"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory, restored_registries):
    with pytest.MonkeyPatch.context() as patch:
        folder = own_package.write_package(tmp_path_factory.mktemp("own"), "own_components")
        patch.syspath_prepend(str(folder))
        yield


def build(**fields):
    model = {"backbone": f"{PATH}:make_backbone", **fields}
    return build_classifier(model, **INFO, rngs=nnx.Rngs(0))


def test_options_reach_the_factory_and_a_preset_does_not_apply():
    classifier = build(options={"widths": (4, 6, 8)}, preset="quickstart")
    assert classifier.backbone.feature_widths == (4, 6, 8)
    assert classifier(IMAGES).shape == (3, 2, 3)


def test_heads_of_both_phases_carry_logits():
    first = build(heads=f"{PATH}:make_heads")
    assert type(first.heads).__name__ == "BoostedHeads"
    features = first.features(IMAGES)
    own = [first.heads.linears[i](f) for i, f in enumerate(features)]
    np.testing.assert_allclose(first(IMAGES)[1], own[0] + own[1], rtol=1e-5)
    second = with_collaborative_heads(
        first, {"transfer": "my_boosted"}, num_classes=3, rngs=nnx.Rngs(1)
    )
    # Both phases have the same variables, which start="phase_one" copies.
    np.testing.assert_array_equal(second(IMAGES), first(IMAGES))
    teacher = second.phase_one_logits(features)
    np.testing.assert_allclose(teacher, run_heads(first.heads, features)[-1], rtol=1e-6)


def test_included_heads_start_from_own_heads_with_linear_layers():
    second = with_collaborative_heads(
        build(heads=f"{PATH}:make_heads"), {"transfer": "linear"}, num_classes=3, rngs=nnx.Rngs(1)
    )
    assert isinstance(second.heads, TransferHeads)


class OtherHeads(nnx.Module):
    def __init__(self, feature_widths, num_classes, rngs):
        self.kernels = nnx.List([nnx.Linear(w, num_classes, rngs=rngs) for w in feature_widths])

    def __call__(self, i, features, carry):
        return self.kernels[i](features), None


def make_other_heads(options, *, feature_widths, num_classes, rngs):
    return OtherHeads(feature_widths, num_classes, rngs)


def test_heads_that_cannot_start_from_phase_one_need_a_fresh_start(monkeypatch):
    monkeypatch.setitem(HEADS._components, "other", make_other_heads)
    for first, transfer in (("independent", "other"), ("other", "linear")):
        classifier = build(heads=first)
        with pytest.raises(InputError, match=r"phase_two\.start.*fresh.*start_from"):
            with_collaborative_heads(
                classifier, {"transfer": transfer}, num_classes=3, rngs=nnx.Rngs(1)
            )
        fresh = {"transfer": transfer, "start": "fresh"}
        assert with_collaborative_heads(classifier, fresh, num_classes=3, rngs=nnx.Rngs(1))


class Backbone(nnx.Module):
    """A correct backbone, of which a test breaks one part."""

    num_exits, feature_widths = 2, (1, 1)

    def stem(self, images):
        return (images,)

    def stage(self, i, state):
        return state

    def exit_features(self, i, state):
        return state[0].mean(axis=(1, 2))


BROKEN = {
    "one width": (1, r"Backbone\.feature_widths.*2 integers.*found 1"),
    "integers": (
        lambda self, i, state: state[0].mean(axis=(1, 2)).astype(jnp.int32),
        r"exit_features\(0, state\).*floating-point.*int32",
    ),
    "feature_widths": ((1,), r"Backbone\.feature_widths.*2 integers.*\(1,\)"),
    "num_exits": (0, r"num_exits.*found 0"),
    "stem": (lambda self, images: images, r"stem\(images\) must return a tuple.*\(2, 8, 8, 1\)"),
    "stage": (lambda self, i, state: (state[0][0],), r"stage\(0, state\).*\(8, 8, 1\).*first axis"),
    "empty": (
        lambda self, i, state: (state[0][:, :, :0],),
        r"stage\(0, state\) of exit 1.*empty.*\(2, 8, 0, 1\)",
    ),
    "raises": (
        lambda self, i, state: 1 // 0,
        r"stage\(0, state\).*ZeroDivisionError.*networks\.py",
    ),
    "exit_features": (
        lambda self, i, state: state[0],
        r"exit_features\(0, state\).*\(2, 1\).*found \(2, 8, 8, 1\)",
    ),
}


BROKEN_PART = {
    "one width": "feature_widths",
    "integers": "exit_features",
    "empty": "stage",
    "raises": "stage",
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_name_the_part_of_a_backbone_that_is_wrong(name, monkeypatch):
    value, message = BROKEN[name]
    broken = type("Backbone", (Backbone,), {BROKEN_PART.get(name, name): value})
    monkeypatch.setitem(BACKBONES._components, "broken", lambda options, **sizes: broken())
    with pytest.raises(InputError, match=rf"config\.model\.backbone 'broken'.*{message}"):
        build(backbone="broken")


def test_errors_name_missing_methods_and_another_signature(monkeypatch):
    class Empty(nnx.Module):
        pass

    monkeypatch.setitem(BACKBONES._components, "empty", lambda options, **sizes: Empty())
    monkeypatch.setitem(BACKBONES._components, "wrong", lambda options, num_classes: Empty())
    monkeypatch.setitem(BACKBONES._components, "none", lambda options, **sizes: None)
    with pytest.raises(InputError, match="Empty lacks num_exits, feature_widths, stem, stage"):
        build(backbone="empty")
    with pytest.raises(InputError, match=r"'wrong'.*image_shape"):
        build(backbone="wrong")
    monkeypatch.setitem(BACKBONES._components, "linen", lambda options, **sizes: linen.Dense(3))
    with pytest.raises(InputError, match=r"'linen'.*found flax.*:Dense$"):
        build(backbone="linen")
    with pytest.raises(InputError, match=r"'none'.*nnx\.Module; found None"):
        build(backbone="none")
    with pytest.raises(InputError, match=r"class|IndependentHeads.*image_shape"):
        build(backbone="imta_jax.techniques:IndependentHeads")


def test_heads_must_return_logits_and_carry(monkeypatch):
    class NoCarry(IndependentHeads):
        def __call__(self, i, features, carry):
            return self.linears[i](features)

    def make(options, *, feature_widths, num_classes, rngs):
        return NoCarry(feature_widths, num_classes, rngs=rngs)

    monkeypatch.setitem(HEADS._components, "no_carry", make)
    with pytest.raises(InputError, match=r"config\.model\.heads 'no_carry'.*\(logits, carry\)"):
        build(heads="no_carry")


def test_fields_of_other_backbones_are_rejected():
    with pytest.raises(InputError, match=r"make_backbone.*config\.model\.options.*'growth_rate'"):
        build(growth_rate=4)
    with pytest.raises(InputError, match=r"config\.model\.options.*'msdnet'.*depth"):
        build_classifier(
            {"preset": "quickstart", "options": {"depth": 3}}, **INFO, rngs=nnx.Rngs(0)
        )


def test_table_shows_stages_of_an_own_backbone(capsys):
    main([f"{PATH}:make_backbone", "--option=widths=(4,8,8)", "--image=8x8x1", "--classes=3"])
    printed = capsys.readouterr().out
    assert "stage 3" in printed and "independent heads" in printed
    with pytest.raises(SystemExit):
        main(["quickstar"])
    assert "first: quickstart" in capsys.readouterr().err
