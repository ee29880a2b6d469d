"""Adaptive inference decides as the simulation on saved logits does, and stops where it says."""

import jax
import numpy as np
import pytest
from flax import nnx

from imta_jax.evaluation import confidence, exit_costs, exit_of, predicted, thresholds_for_quota
from imta_jax.inference import AdaptiveClassifier
from imta_jax.inference.engine import classifier_stages, profile
from imta_jax.models import build_classifier, optimize_classifier, with_collaborative_heads
from imta_jax.nn.pixels import normalize

TINY = {
    "preset": "quickstart",
    "num_exits": 3,
    "channels": 4,
    "growth_rate": 2,
}
MEAN, STD = (0.4,), (0.3,)


@pytest.fixture(scope="module")
def classifier():
    first = build_classifier(TINY, num_classes=5, image_shape=(16, 16, 1), rngs=nnx.Rngs(0))
    heads = {"transfer": "linear", "start": "fresh"}
    return with_collaborative_heads(first, heads, num_classes=5, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (37, 16, 16, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def logits(classifier, images):
    evaluated = nnx.clone(classifier)
    evaluated.eval()
    return np.asarray(nnx.jit(lambda c, x: c(x))(evaluated, normalize(images, MEAN, STD)))


@pytest.fixture(scope="module")
def thresholds(logits):
    return thresholds_for_quota(confidence(logits), np.asarray([0.4, 0.3, 0.3], np.float32))


@pytest.mark.parametrize("max_batch_size", [1, 7, 16, 64])
def test_early_exit_agrees_with_the_simulation(
    classifier, images, logits, thresholds, max_batch_size
):
    thresholds = thresholds.copy()
    # Halfway between two confidences: rounding in another batch size must not decide.
    sure = confidence(logits)
    for i, t in enumerate(thresholds[:-1]):
        below = sure[i][sure[i] < t]
        thresholds[i] = (t + below.max()) / 2 if len(below) else t
    adaptive = AdaptiveClassifier(
        classifier, thresholds, mean=MEAN, std=STD, max_batch_size=max_batch_size
    )
    found = adaptive.predict(images)
    exits = exit_of(sure, thresholds)
    rows = np.arange(len(images))
    np.testing.assert_array_equal(found.exit, exits)
    np.testing.assert_array_equal(found.labels, predicted(logits)[exits, rows])
    np.testing.assert_allclose(found.confidence, sure[exits, rows], rtol=1e-4)
    np.testing.assert_array_equal(found.macs, exit_costs(classifier).macs[exits])
    assert len(np.unique(exits)) == 3


def test_normalised_floats_and_pixels_get_the_same_answer(classifier, images, thresholds):
    adaptive = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD, max_batch_size=64)
    floats = adaptive.predict(np.asarray(normalize(images, MEAN, STD)))
    np.testing.assert_array_equal(floats.labels, adaptive.predict(images).labels)


def test_later_stages_are_not_computed_when_everyone_leaves(classifier, images, monkeypatch):
    adaptive = AdaptiveClassifier(classifier, [0.0, 0.0, 0.0], mean=MEAN, std=STD, lanes=1)
    ran = []
    start = adaptive.engine.start
    monkeypatch.setattr(
        adaptive.engine,
        "start",
        lambda p, segment, *a: ran.append(segment) or start(p, segment, *a),
    )
    assert set(adaptive.predict(images).exit) == {0}
    assert set(ran) == {(0, 0)}


def test_nothing_is_compiled_after_warm_up(classifier, images, thresholds, tmp_path):
    adaptive = AdaptiveClassifier(
        classifier, thresholds, mean=MEAN, std=STD, max_batch_size=9, profile_dir=tmp_path
    )
    adaptive.warm_up()
    compiled = adaptive.programs.num_compiled
    for count in (37, *range(20), 5):
        adaptive.predict(images[:count])
    assert adaptive.programs.num_compiled == compiled


def test_no_images_are_an_empty_answer(classifier, thresholds):
    adaptive = AdaptiveClassifier(classifier, thresholds)
    found = adaptive.predict(np.zeros((0, 16, 16, 1), np.float32))
    assert [len(column) for column in found] == [0, 0, 0, 0]


def test_bad_input_is_refused_with_what_was_found(classifier, images, thresholds):
    with pytest.raises(ValueError, match=r"3 exits.*\(2,\)"):
        AdaptiveClassifier(classifier, [0.5, 0.5])
    for dtype in ("bfloat61", "float64", None):
        with pytest.raises(ValueError, match=r"unknown dtype .*; valid, .*: .*float"):
            AdaptiveClassifier(classifier, thresholds, dtype=dtype)
    adaptive = AdaptiveClassifier(classifier, thresholds)
    with pytest.raises(ValueError, match="mean and std"):
        adaptive.predict(images)
    with pytest.raises(ValueError, match=r"\(37, 8, 16, 1\)"):
        adaptive.predict(images[:, :8])
    with pytest.raises(ValueError, match="must be numbers"):
        AdaptiveClassifier(classifier, [0.5, float("nan"), 0.5])
    broken = np.zeros((3, 16, 16, 1), np.float32)
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="image 2 has a pixel that is not finite"):
        adaptive.predict(broken)
    with pytest.raises(ValueError, match="image 0 has a pixel that is not finite"):
        adaptive.predict(np.full((1, 16, 16, 1), 1e300))
    with pytest.raises(ValueError, match="exit_fractions must be shares"):
        AdaptiveClassifier(classifier, thresholds, exit_fractions=[-1, 1, 1])
    with pytest.raises(ValueError, match="int32"):
        adaptive.predict(images.astype(np.int32))


def test_the_classifier_is_left_as_it_was(classifier, images, thresholds):
    before = jax.tree.map(np.array, nnx.state(classifier))
    AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD).predict(images)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(classifier))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"prune": "min", "reduction": 0.5, "base": 3, "step": 2, "step_mode": "even"},
        {"base": 1, "step": 1, "step_mode": "even"},
    ],
)
def test_lazy_stages_equal_full_stages(more):
    network = build_classifier(
        TINY | more, num_classes=5, image_shape=(16, 16, 1), rngs=nnx.Rngs(0)
    )
    network.eval()

    @nnx.jit
    def both(network, images):
        full, lazy = network.backbone, optimize_classifier(network, lazy=True).backbone
        state, pending, pairs = full.stem(images), lazy.stem(images), []
        for i in range(network.num_exits):
            state, pending = full.stage(i, state), lazy.stage(i, pending)
            pairs.append((full.exit_features(i, state), lazy.exit_features(i, pending)))
            # Maps that the exit does not read wait wherever there is more than one scale.
            assert len(state) == 1 or None in pending[-1]
        return pairs

    images = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype(np.float32)
    for expected, found in both(network, images):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, found)


def test_a_backbone_without_an_optimized_form_gives_the_same_predictions(
    classifier, images, thresholds, monkeypatch
):
    expected = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD).predict(images)
    monkeypatch.setattr(
        classifier_stages, "optimize_classifier", lambda classifier, **form: classifier
    )
    found = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD).predict(images)
    np.testing.assert_array_equal(found.exit, expected.exit)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_bfloat16_decides_by_its_own_logits(classifier, images):
    settings = {"mean": MEAN, "std": STD, "dtype": "bfloat16", "max_batch_size": 16}
    logits = AdaptiveClassifier(classifier, [2.0, 2.0, 2.0], **settings).logits(images)
    sure = confidence(logits)
    thresholds = np.median(sure, axis=1)
    found = AdaptiveClassifier(classifier, thresholds, **settings).predict(images)
    expected = exit_of(sure, thresholds)
    near = (np.abs(sure - thresholds[:, None]) < 1e-5).any(axis=0)
    np.testing.assert_array_equal(found.exit[~near], expected[~near])
    rows = np.arange(len(images))
    np.testing.assert_allclose(found.confidence, sure[found.exit, rows], atol=1e-5)
    assert near.sum() < 5 and len(np.unique(found.exit)) == 3


def test_other_thresholds_share_what_was_compiled(classifier, images, thresholds, tmp_path):
    settings = {"mean": MEAN, "std": STD, "max_batch_size": 8, "batch_sizes": (4, 8)}
    first = AdaptiveClassifier(classifier, thresholds, **settings, profile_dir=tmp_path)
    first.predict(images)
    compiled = first.programs.num_compiled
    second = first.with_thresholds(thresholds * 0.99)
    assert second.predict(images).exit.mean() <= first.predict(images).exit.mean()
    assert second.programs.num_compiled == compiled
    with pytest.raises(ValueError, match="3 exits"):
        first.with_thresholds([0.5])


def test_a_profile_is_measured_once_and_read_again(classifier, thresholds, tmp_path, monkeypatch):
    settings = {"max_batch_size": 4, "batch_sizes": (2, 4), "profile_dir": tmp_path, "lanes": 1}
    measured = AdaptiveClassifier(classifier, thresholds, **settings).warm_up()
    assert measured.stage_ms.shape == (3, 2) and measured.hand_over_ms.shape == (2, 2)
    assert (measured.stage_ms > 0).all() and "us per image" in measured.table()
    monkeypatch.setattr(profile, "_measure", lambda *_: pytest.fail("measured again"))
    again = AdaptiveClassifier(classifier, thresholds, **settings).warm_up()
    np.testing.assert_array_equal(again.stage_ms, measured.stage_ms)
    (kept,) = tmp_path.glob("*.json")
    kept.write_text("{}")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        AdaptiveClassifier(classifier, thresholds, **settings).warm_up()


def test_what_overflows_leaves_at_once_and_says_so(classifier):
    adaptive = AdaptiveClassifier(classifier, [2.0, 2.0, 2.0], max_batch_size=4)
    images = np.zeros((3, 16, 16, 1), np.float32)
    images[1] = 3e38
    found = adaptive.predict(images)
    assert list(np.isfinite(found.confidence)) == [True, False, True]
    np.testing.assert_array_equal(found.labels[[0, 2]], adaptive.predict(images[[0, 2]]).labels)


def test_an_interrupted_batch_leaves_the_next_one_right(
    classifier, images, thresholds, monkeypatch
):
    adaptive = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD, lanes=2)
    expected = adaptive.predict(images)
    predict, calls = adaptive._predict_in_lane, []

    def interrupted(pools, part):
        calls.append(pools)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return predict(pools, part)

    monkeypatch.setattr(adaptive, "_predict_in_lane", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adaptive.predict(images)
    found = adaptive.predict(images)
    np.testing.assert_array_equal(found.exit, expected.exit)
    np.testing.assert_array_equal(found.labels, expected.labels)
