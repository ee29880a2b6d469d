"""Drift of exit fractions: false-alarm rate, detection, deadlines; audits and new thresholds."""

import numpy as np
import pytest

from imta_jax.evaluation import confidence, exit_of, thresholds_for_quota
from imta_jax.inference import AdaptiveClassifier, Audit, DriftMonitor, StreamMonitor
from imta_jax.inference.stream.request import StreamPredictions

FRACTIONS = np.array([0.5, 0.3, 0.15, 0.05])


def sample(rng, count, fractions=FRACTIONS):
    return rng.choice(len(fractions), count, p=fractions)


def simulated_alarm_rate(observe, rate, *, runs=3000, num_validation=5000):
    """Alarms per window, each against validation images of its own."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(runs):
        counts = rng.multinomial(num_validation, FRACTIONS)
        monitor = DriftMonitor(
            counts / num_validation, num_validation=num_validation, false_alarm_rate=rate
        )
        observe(monitor, sample(rng, monitor.window), rng)
        alarms += monitor.status().num_alarms
    return alarms / runs


def with_deadlines(monitor, exits, rng):
    """Observes images, of which half have a deadline that ends at a random exit."""
    last = np.where(rng.random(len(exits)) < 0.5, rng.integers(0, 3, len(exits)), 3)
    monitor.observe(np.minimum(exits, last), last < exits)


def test_false_alarms_have_the_declared_rate():
    rate = simulated_alarm_rate(lambda monitor, exits, _: monitor.observe(exits), 0.05)
    assert rate == pytest.approx(0.05, abs=0.012)  # 3 standard deviations


def test_images_that_leave_at_a_deadline_cause_no_alarm():
    assert simulated_alarm_rate(with_deadlines, 0.05) == pytest.approx(0.05, abs=0.012)


def test_exit_fractions_are_corrected_for_deadlines():
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(FRACTIONS, window=50_000)
    with_deadlines(monitor, sample(rng, 50_000), rng)
    np.testing.assert_allclose(monitor.status().exit_fractions, FRACTIONS, atol=0.01)


@pytest.mark.parametrize("num_validation", [None, 5000])
def test_shift_gives_an_alarm(num_validation):
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(FRACTIONS, num_validation=num_validation)
    monitor.observe(sample(rng, 1000))
    assert not monitor.status().alarm
    monitor.observe(sample(rng, 1000, [0.4, 0.3, 0.2, 0.1]))
    status = monitor.status()
    assert status.alarm and (status.num_alarms, status.num_windows) == (1, 2)
    monitor.observe(sample(rng, 1000))
    assert not monitor.status().alarm


def test_windows_do_not_depend_on_the_size_of_requests():
    exits = sample(np.random.default_rng(0), 3500)
    single, grouped = DriftMonitor(FRACTIONS), DriftMonitor(FRACTIONS)
    single.observe(exits)
    for part in np.array_split(exits, 700):
        grouped.observe(part)
    assert single.status().num_windows == grouped.status().num_windows == 3
    assert single.status().p_value == grouped.status().p_value
    assert grouped.status().num_images == 3500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_fractions": [0.5, 0.2]}, r"exit_fractions.*\[0\.5, 0\.2\].*1"),
        ({"window": 0}, "window.*0"),
        ({"false_alarm_rate": 1.0}, r"false_alarm_rate.*1\.0"),
    ],
)
def test_invalid_settings_are_rejected(changes, message):
    fields = {"exit_fractions": FRACTIONS, **changes}
    with pytest.raises(ValueError, match=message):
        DriftMonitor(fields.pop("exit_fractions"), **fields)


def test_exit_of_another_network_is_rejected():
    with pytest.raises(ValueError, match=r"exits.*4.*0 to 3"):
        DriftMonitor(FRACTIONS).observe(np.array([0, 4]))


@pytest.fixture(scope="module")
def adaptive(classifier):
    return AdaptiveClassifier(classifier, [0.5] * 3, max_batch_size=32)


def noise(seed, count, scale):
    return (scale * np.random.default_rng(seed).normal(size=(count, 16, 16, 1))).astype(np.float32)


def test_audit_accounts_for_every_sampled_image(adaptive):
    images = noise(0, 200, 1.0)
    labels = adaptive.logits(images[:32])[-1].argmax(axis=-1)
    audit = Audit(adaptive, share=0.5, seed=1, max_waiting=60)
    audit.observe(images, np.resize(labels, 200))
    report = audit.report()
    assert 70 < report.sampled < 130
    assert report.waiting == 60 and report.skipped == report.sampled - 60
    assert audit.run() == 60 and audit.run() == 0
    report = audit.report()
    assert (report.audited, report.waiting, report.compared) == (60, 0, 60)


def test_the_same_seed_draws_the_same_images(adaptive):
    def drawn(seed):
        audit, images = Audit(adaptive, share=0.3, seed=seed), noise(0, 100, 1.0)
        for part in np.array_split(images, 7):
            audit.observe(part, np.zeros(len(part), np.int32))
        return [float(image[0, 0, 0]) for image, _ in audit._waiting]

    assert drawn(1) == drawn(1) != drawn(2)


def test_agreement_is_that_of_the_last_exit(adaptive):
    images = noise(2, 40, 1.0)
    labels = adaptive.logits(images[:32])[-1].argmax(axis=-1)
    wrong = labels.copy()
    wrong[:8] += 1
    truncated = np.arange(32) < 4
    audit = Audit(adaptive, share=1.0)
    monitor = StreamMonitor(DriftMonitor([1, 0, 0]), audit)
    none = np.zeros(32)
    monitor(
        images[:32],
        StreamPredictions(
            wrong.astype(np.int32),
            none.astype(np.int32),
            none.astype(np.float32),
            none.astype(np.int64),
            none,
            none == 0,
        ),
        truncated,
    )
    audit.run()
    report = audit.report()
    assert report.compared == 28 and report.agreement == 24 / 28
    assert monitor.drift.status().num_images == 32


def test_new_thresholds_restore_the_cost_after_a_shift(adaptive):
    quota = np.array([0.5, 0.3, 0.2])
    thresholds = thresholds_for_quota(confidence(adaptive.logits(noise(3, 512, 1.0))), quota)
    expected = float(adaptive.macs @ quota)
    shifted = noise(4, 512, 0.3)
    scores = confidence(adaptive.logits(shifted))
    before = adaptive.macs[exit_of(scores, thresholds)].mean()
    assert abs(before - expected) > 0.1 * expected

    audit = Audit(adaptive, share=1.0)
    audit.observe(shifted, np.zeros(512, np.int32))
    audit.run()
    new = audit.new_thresholds(quota)
    assert new.num_images == 512
    np.testing.assert_allclose(new.exit_fractions, quota, atol=0.01)
    held_out = confidence(adaptive.logits(noise(5, 512, 0.3)))
    after = adaptive.macs[exit_of(held_out, new.thresholds)].mean()
    assert after == pytest.approx(expected, rel=0.06)
    assert new.mean_macs == pytest.approx(expected, rel=0.02)


def test_new_thresholds_need_audited_images(adaptive):
    with pytest.raises(ValueError, match="0 images"):
        Audit(adaptive).new_thresholds([1.0, 0.0, 0.0])
