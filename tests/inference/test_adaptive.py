"""Adaptive inference: the exits and predictions of saved logits, stages and compiled programs."""

from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from imta_jax.evaluation import confidence, exit_costs, exit_of, predicted, thresholds_for_quota
from imta_jax.inference import AdaptiveClassifier
from imta_jax.inference.engine import classifier_stages, profiling
from imta_jax.models import build_classifier
from imta_jax.models.optimize import optimized_form
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.pixels import normalize

TINY = {"preset": "quickstart", "num_exits": 3, "channels": 4, "growth_rate": 2}
MEAN, STD = (0.4,), (0.3,)


@pytest.fixture(scope="module")
def logits(classifier, images):
    evaluated = nnx.clone(classifier)
    evaluated.eval()
    return np.asarray(nnx.jit(lambda c, x: c(x))(evaluated, normalize(images, MEAN, STD)))


@pytest.fixture(scope="module")
def thresholds(logits):
    return thresholds_for_quota(confidence(logits), np.asarray([0.4, 0.3, 0.3], np.float32))


# With one batch size, images of several programs are merged: images first below 12, then last.
@pytest.mark.parametrize(
    "max_batch_size, batch_sizes",
    [(1, None), (7, None), (16, None), (64, None), (32, [5]), (64, [13])],
)
def test_early_exit_equals_exits_of_saved_logits(
    classifier, images, logits, thresholds, max_batch_size, batch_sizes
):
    thresholds = thresholds.copy()
    # Halfway between two confidences, where rounding does not change the exit.
    confidences = confidence(logits)
    for i, t in enumerate(thresholds[:-1]):
        below = confidences[i][confidences[i] < t]
        thresholds[i] = (t + below.max()) / 2 if len(below) else t
    adaptive = AdaptiveClassifier(
        classifier,
        thresholds,
        mean=MEAN,
        std=STD,
        max_batch_size=max_batch_size,
        batch_sizes=batch_sizes,
    )
    predictions = adaptive.predict(images)
    exits = exit_of(confidences, thresholds)
    every_image = np.arange(len(images))
    np.testing.assert_array_equal(predictions.exit, exits)
    np.testing.assert_array_equal(predictions.labels, predicted(logits)[exits, every_image])
    np.testing.assert_allclose(predictions.confidence, confidences[exits, every_image], rtol=1e-4)
    np.testing.assert_array_equal(predictions.macs, exit_costs(classifier).macs[exits])
    assert len(np.unique(exits)) == 3


def test_flat_maps_between_programs_give_the_same_predictions(
    classifier, images, thresholds, monkeypatch
):
    settings = {"mean": MEAN, "std": STD, "max_batch_size": 16, "num_workers": 1}
    expected = AdaptiveClassifier(classifier, thresholds, **settings).predict(images)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    adaptive = AdaptiveClassifier(classifier, thresholds, **settings)
    assert adaptive.programs.flat
    assert {len(x.shape) for x in adaptive.programs.state_shapes(1, 4)} == {2}
    actual = adaptive.predict(images)
    np.testing.assert_array_equal(actual.exit, expected.exit)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_allclose(actual.confidence, expected.confidence, rtol=1e-4)


def test_normalized_floats_and_uint8_pixels_get_the_same_labels(classifier, images, thresholds):
    adaptive = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD, max_batch_size=64)
    floats = adaptive.predict(np.asarray(normalize(images, MEAN, STD)))
    np.testing.assert_array_equal(floats.labels, adaptive.predict(images).labels)


def test_later_stages_do_not_run_when_all_images_exit(classifier, images, monkeypatch):
    adaptive = AdaptiveClassifier(classifier, [0.0, 0.0, 0.0], mean=MEAN, std=STD, num_workers=1)
    segments = []
    run = adaptive.engine._run
    monkeypatch.setattr(
        adaptive.engine,
        "_run",
        lambda program, segment, *args: segments.append(segment) or run(program, segment, *args),
    )
    assert set(adaptive.predict(images).exit) == {0}
    assert set(segments) == {(0, 0)}


@pytest.mark.parametrize("last", [0, 1, 2])
def test_one_program_skips_the_stages_after_the_exit_of_a_single_image(classifier, images, last):
    executed = []

    def counted(logits):
        jax.debug.callback(lambda: executed.append(1))
        return jax.nn.softmax(logits).max(axis=-1)

    thresholds = np.where(np.arange(3) < last, 0.9999, 0.0)
    adaptive = AdaptiveClassifier(
        classifier, thresholds, mean=MEAN, std=STD, num_workers=1, exit_rule=counted
    )
    assert adaptive.plan_for(1).segments == ((0, 2),)
    assert adaptive.predict(images[:1]).exit.tolist() == [last]
    jax.effects_barrier()
    assert len(executed) == last + 1


def test_predict_compiles_nothing_after_warm_up(classifier, images, thresholds, tmp_path):
    adaptive = AdaptiveClassifier(
        classifier, thresholds, mean=MEAN, std=STD, max_batch_size=9, profile_dir=tmp_path
    )
    adaptive.warm_up()
    compiled = adaptive.programs.num_compiled
    for count in (37, *range(20), 5):
        adaptive.predict(images[:count])
    assert adaptive.programs.num_compiled == compiled


def test_no_images_give_empty_predictions(classifier, thresholds):
    adaptive = AdaptiveClassifier(classifier, thresholds)
    predictions = adaptive.predict(np.zeros((0, 16, 16, 1), np.float32))
    assert [len(column) for column in predictions] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"thresholds": [0.5, 0.5]}, r"thresholds.*3 exits.*\(2,\)"),
        ({"thresholds": [0.5, float("nan"), 0.5]}, "thresholds.*nan"),
        ({"exit_fractions": [-1, 1, 1]}, r"exit_fractions.*\[-1\.0, 1\.0, 1\.0\]"),
        ({"dtype": "bfloat61"}, "dtype 'bfloat61'.*bfloat16"),
        ({"dtype": "float64"}, "dtype 'float64'.*float32"),
        ({"dtype": None}, "dtype.*float32"),
        ({"max_batch_size": 0}, r"max_batch_size.*\b0"),
        ({"num_workers": 5, "max_batch_size": 4}, "num_workers.*max_batch_size=4.*5"),
        ({"batch_sizes": (9,), "max_batch_size": 8}, r"batch_sizes.*\(9,\)"),
    ],
)
def test_invalid_argument_is_rejected(classifier, arguments, message):
    arguments = {"thresholds": [0.5, 0.5, 0.5]} | arguments
    with pytest.raises(ValueError, match=message):
        AdaptiveClassifier(classifier, **arguments)


def test_invalid_images_are_rejected(classifier, images, thresholds):
    adaptive = AdaptiveClassifier(classifier, thresholds)
    with pytest.raises(ValueError, match=r"uint8.*mean.*std"):
        adaptive.predict(images)
    with pytest.raises(ValueError, match=r"\[N, 16, 16, 1\].*\(37, 8, 16, 1\)"):
        adaptive.predict(images[:, :8])
    with pytest.raises(ValueError, match="int32"):
        adaptive.predict(images.astype(np.int32))
    not_finite = np.zeros((3, 16, 16, 1), np.float32)
    not_finite[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"image 2 .*\(1, 0, 0\)"):
        adaptive.predict(not_finite)
    with pytest.raises(ValueError, match="image 0 "):
        adaptive.predict(np.full((1, 16, 16, 1), 1e300))


def test_classifier_is_not_modified(classifier, images, thresholds):
    before = jax.tree.map(np.array, nnx.state(classifier))
    AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD).predict(images)
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, nnx.state(classifier)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prune": "min", "reduction": 0.5, "base": 3, "step": 2, "step_mode": "even"},
        {"base": 1, "step": 1, "step_mode": "even"},
    ],
)
def test_packed_stages_do_not_compute_maps_that_only_later_exits_read(fields):
    network = build_classifier(
        TINY | fields, num_classes=5, image_shape=(16, 16, 1), rngs=nnx.Rngs(0)
    )
    network.eval()

    @nnx.jit
    def both(full, packed, images):
        state, packed_state, pairs = full.stem(images), packed.stem(images), []
        for i in range(full.num_exits):
            state, packed_state = full.stage(i, state), packed.stage(i, packed_state)
            pairs.append((full.exit_features(i, state), packed.exit_features(i, packed_state)))
            # With several scales, maps that the exit does not read are not computed.
            assert len(state) == 1 or None in packed_state[-1]
        return pairs

    images = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype(np.float32)
    packed = optimized_form(network, prepare_weights=True)
    for expected, actual in both(network.backbone, packed.backbone, images):
        chex.assert_trees_all_close(actual, expected, atol=2e-5)


def test_backbone_without_an_optimized_form_gives_the_same_predictions(
    classifier, images, thresholds, monkeypatch
):
    expected = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD).predict(images)
    monkeypatch.setattr(
        classifier_stages, "optimize_classifier", lambda classifier, use: classifier
    )
    monkeypatch.setattr(classifier_stages, "computes_faster_images_last", lambda _: False)
    actual = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD).predict(images)
    np.testing.assert_array_equal(actual.exit, expected.exit)
    np.testing.assert_array_equal(actual.labels, expected.labels)


def test_bfloat16_exits_are_those_of_bfloat16_logits(classifier, images):
    settings = {"mean": MEAN, "std": STD, "dtype": "bfloat16", "max_batch_size": 16}
    adaptive = AdaptiveClassifier(classifier, [2.0, 2.0, 2.0], **settings)
    confidences = confidence(adaptive.logits(images))
    thresholds = np.median(confidences, axis=1)
    predictions = adaptive.with_thresholds(thresholds).predict(images)
    expected = exit_of(confidences, thresholds)
    near = (np.abs(confidences - thresholds[:, None]) < 1e-5).any(axis=0)
    np.testing.assert_array_equal(predictions.exit[~near], expected[~near])
    at_exit = confidences[predictions.exit, np.arange(len(images))]
    np.testing.assert_allclose(predictions.confidence, at_exit, atol=1e-5)
    assert near.sum() < 5 and len(np.unique(predictions.exit)) == 3


def test_with_thresholds_shares_compiled_programs(classifier, images, thresholds, tmp_path):
    settings = {"mean": MEAN, "std": STD, "max_batch_size": 8, "batch_sizes": (4, 8)}
    first = AdaptiveClassifier(classifier, thresholds, **settings, profile_dir=tmp_path)
    first.predict(images)
    compiled = first.programs.num_compiled
    second = first.with_thresholds(thresholds * 0.99)
    assert second.predict(images).exit.mean() <= first.predict(images).exit.mean()
    assert second.programs.num_compiled == compiled
    with pytest.raises(ValueError, match=r"thresholds.*3 exits.*\(1,\)"):
        first.with_thresholds([0.5])


def test_profile_is_measured_once_and_then_loaded(classifier, thresholds, tmp_path, monkeypatch):
    settings = {
        "max_batch_size": 4,
        "batch_sizes": (2, 4),
        "profile_dir": tmp_path,
        "num_workers": 1,
    }
    measured = AdaptiveClassifier(classifier, thresholds, **settings).warm_up()
    assert measured.stage_ms.shape == (3, 2) and measured.compaction_ms.shape == (2, 2)
    assert (measured.stage_ms > 0).all() and "us per image" in measured.table()
    monkeypatch.setattr(profiling, "_measure", lambda *_: pytest.fail("measured again"))
    loaded = AdaptiveClassifier(classifier, thresholds, **settings).warm_up()
    np.testing.assert_array_equal(loaded.stage_ms, measured.stage_ms)
    (cached,) = tmp_path.glob("*.json")
    cached.write_text("{}")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        AdaptiveClassifier(classifier, thresholds, **settings).warm_up()


def test_image_with_overflow_exits_with_a_nan_confidence(classifier):
    adaptive = AdaptiveClassifier(classifier, [2.0, 2.0, 2.0], max_batch_size=4)
    images = np.zeros((3, 16, 16, 1), np.float32)
    images[1] = 3e38
    predictions = adaptive.predict(images)
    assert list(np.isfinite(predictions.confidence)) == [True, False, True]
    np.testing.assert_array_equal(
        predictions.labels[[0, 2]], adaptive.predict(images[[0, 2]]).labels
    )


def test_batch_after_an_interrupted_batch_is_correct(classifier, images, thresholds, monkeypatch):
    adaptive = AdaptiveClassifier(classifier, thresholds, mean=MEAN, std=STD, num_workers=2)
    expected = adaptive.predict(images)
    predict, calls = adaptive._predict_on_worker, []

    def interrupted(table, shard):
        calls.append(shard)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return predict(table, shard)

    monkeypatch.setattr(adaptive, "_predict_on_worker", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adaptive.predict(images)
    predictions = adaptive.predict(images)
    np.testing.assert_array_equal(predictions.exit, expected.exit)
    np.testing.assert_array_equal(predictions.labels, expected.labels)


def test_threads_may_predict_at_the_same_time(classifier, images, thresholds):
    adaptive = AdaptiveClassifier(
        classifier, thresholds, mean=MEAN, std=STD, num_workers=2, batch_sizes=[5]
    )
    expected = adaptive.predict(images)
    with ThreadPoolExecutor(4) as threads:
        for predictions in threads.map(adaptive.predict, [images] * 8):
            np.testing.assert_array_equal(predictions.exit, expected.exit)
            np.testing.assert_array_equal(predictions.labels, expected.labels)


def test_predictions_during_a_warm_up_in_the_background_are_those_after_it(
    classifier, images, thresholds, tmp_path
):
    settings = {"mean": MEAN, "std": STD, "max_batch_size": 32, "batch_sizes": (4, 16)}
    adaptive = AdaptiveClassifier(classifier, thresholds, **settings, profile_dir=tmp_path)
    adaptive.warm_up(wait=False)
    before = adaptive.predict(images)
    adaptive._background.join()
    compiled = adaptive.programs.num_compiled
    after = adaptive.predict(images)
    assert adaptive.programs.num_compiled == compiled
    np.testing.assert_array_equal(before.exit, after.exit)
    np.testing.assert_array_equal(before.labels, after.labels)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("layout", list(Layout))
def test_packed_stages_equal_full_stages(stem, layout):
    fields = TINY | {"stem": stem, "prune": "min", "reduction": 0.5, "base": 3}
    shape = (32, 32, 3) if stem == "imagenet" else (16, 16, 1)
    network = build_classifier(fields, num_classes=5, image_shape=shape, rngs=nnx.Rngs(0))
    network.eval()
    packed = optimized_form(network, layout=layout, prepare_weights=True)
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    run = nnx.jit(lambda network, images: network(images))
    chex.assert_trees_all_close(run(packed, images), run(network, images), atol=2e-5)
