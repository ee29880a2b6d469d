"""A stream answers every image once, as a batch would be, in time where it is asked to."""

import queue
import threading
import time

import numpy as np
import pytest
from flax import nnx

from imta_jax.inference import AdaptiveClassifier, AdaptiveStream
from imta_jax.inference.stream.request_queue import Entrance, Request
from imta_jax.inference.stream.worker import Lane, LaneSettings
from imta_jax.models import build_classifier

TINY = {"preset": "quickstart", "num_exits": 3, "channels": 4, "growth_rate": 2}
IMAGES = 97


@pytest.fixture(scope="module")
def classifier():
    network = build_classifier(TINY, num_classes=5, image_shape=(16, 16, 1), rngs=nnx.Rngs(0))
    adaptive = AdaptiveClassifier(
        network, [0.5] * 3, max_batch_size=16, batch_sizes=(1, 4, 8), exit_fractions=[1 / 3] * 3
    )
    # An untrained network is sure of nothing: thresholds in the middle of what it says.
    sure = np.sort(_softmax(adaptive.logits(images())).max(axis=-1), axis=1)
    between = (sure[:, IMAGES // 2] + sure[:, IMAGES // 2 + 1]) / 2
    return AdaptiveClassifier(
        network, between, max_batch_size=16, batch_sizes=(1, 4, 8), exit_fractions=[1 / 3] * 3
    )


def images():
    return np.random.default_rng(0).normal(size=(IMAGES, 16, 16, 1)).astype(np.float32)


def _softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def assert_as_a_batch(classifier, answers, at):
    expected = classifier.predict(images()[at])
    np.testing.assert_array_equal(answers.labels, expected.labels)
    np.testing.assert_array_equal(answers.exit, expected.exit)
    np.testing.assert_allclose(answers.confidence, expected.confidence, atol=1e-5)
    np.testing.assert_array_equal(answers.macs, expected.macs)


def test_nothing_is_lost_or_answered_twice_in_a_long_run(classifier):
    """Four threads, odd submissions, a small waiting room, some deadlines."""
    count, lock, answered = 1200, threading.Lock(), []

    def send(seed):
        rng = np.random.default_rng(seed)
        sent = 0
        while sent < count // 4:
            at = rng.integers(0, IMAGES, rng.integers(1, 12))
            hurried = rng.random() < 0.2
            future = stream.submit(images()[at], deadline_ms=1.0 if hurried else None)
            sent += len(at)
            with lock:
                answered.append((at, hurried, future))

    with AdaptiveStream(classifier, max_waiting=64) as stream:
        senders = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    total = 0
    for at, hurried, future in answered:
        found = future.result(timeout=0)
        total += len(found.labels)
        assert len(found.labels) == len(at)
        if not hurried:
            assert_as_a_batch(classifier, found, at)
            assert found.in_time.all()
    statistics = stream.statistics()
    assert statistics.answered == total == sum(len(at) for at, _, _ in answered) >= count
    assert 0 < statistics.p50_ms <= statistics.p99_ms
    assert 1 <= statistics.mean_batch_size <= 8


@pytest.fixture
def lane(classifier):
    """A lane driven by hand, and whom it has answered."""
    answered, entrance = [], Entrance()
    lane = Lane(LaneSettings.of(classifier), entrance, lambda r, at: answered.extend(at))
    return lane, entrance, answered


def admit(entrance, at, deadline=np.inf):
    request = Request(images()[at], deadline)
    with entrance.changed:
        entrance.add(request)
    return request


def test_an_image_whose_time_is_up_leaves_with_its_best_answer(classifier, lane):
    lane, entrance, answered = lane
    whole = classifier.predict(images())
    at = np.flatnonzero(whole.exit == 2)[:4]
    request = admit(entrance, at, deadline=time.perf_counter() - 1)
    while lane.step():  # late as it is, it gets the first exit's answer, and no other
        pass
    assert sorted(answered) == [0, 1, 2, 3] and request.complete and not lane.has_waiting
    assert lane.computed == 4
    request.finish(classifier.macs)
    found = request.future.result()
    assert set(found.exit) == {0} and not found.in_time.any()
    first = classifier.logits(images()[at])[0]
    np.testing.assert_array_equal(found.labels, first.argmax(axis=-1))


def test_stages_wait_for_full_batches_while_images_come(classifier, lane):
    lane, entrance, _ = lane
    for _ in range(5):
        admit(entrance, np.arange(IMAGES))
    while entrance.waiting >= 8:
        assert lane.step()
        if entrance.waiting >= 8:
            assert lane.computed == 8 * lane.programs
    while lane.step():
        pass
    assert not lane.has_waiting and not lane.step()


def test_a_full_stream_holds_submitters_back(classifier, monkeypatch):
    resume = threading.Event()
    step = Lane.step
    monkeypatch.setattr(Lane, "step", lambda lane: resume.wait() and step(lane))
    with AdaptiveStream(classifier, max_waiting=8) as stream:
        first = stream.submit(images()[:8])
        with pytest.raises(queue.Full, match=r"8 images wait, 8 may"):
            stream.submit(images()[0], timeout_s=0.01)
        resume.set()
        assert len(first.result().labels) == 8
        assert len(stream.submit(images()[0]).result().labels) == 1


def test_a_failure_reaches_everyone_who_waits(classifier, monkeypatch):
    def broken(*_):
        raise OSError("the device is gone")

    monkeypatch.setattr(Lane, "_start", broken)
    with AdaptiveStream(classifier) as stream:
        with pytest.raises(OSError, match="the device is gone"):
            stream.submit(images()[:3]).result(timeout=60)
        with pytest.raises(RuntimeError, match=r"the stream has failed.*the device is gone"):
            stream.submit(images()[:3])


def test_the_callers_buffer_may_be_used_again(classifier):
    buffer = images()[:20].copy()
    with AdaptiveStream(classifier) as stream:
        future = stream.submit(buffer)
        buffer[:] = 0
        assert_as_a_batch(classifier, future.result(), np.arange(20))


def test_a_second_stream_compiles_nothing(classifier):
    with AdaptiveStream(classifier) as stream:
        stream.submit(images()).result()
    (programs,) = [
        p for p in classifier._programs_by_capacity.values() if p is not classifier.programs
    ]
    compiled = programs.num_compiled
    with AdaptiveStream(classifier) as stream:
        stream.submit(images()).result()
    assert programs.num_compiled == compiled


def test_bad_submissions_are_refused(classifier):
    with AdaptiveStream(classifier, max_waiting=4) as stream:
        with pytest.raises(ValueError, match=r"1 to 4 images.*found 5"):
            stream.submit(images()[:5])
        with pytest.raises(ValueError, match="deadline_ms must be a number from 0; found nan"):
            stream.submit(images()[:1], deadline_ms=float("nan"))
        with pytest.raises(ValueError, match="found 0"):
            stream.submit(images()[:0])
        with pytest.raises(ValueError, match=r"expected images \[N, 16, 16, 1\]"):
            stream.submit(np.zeros((3, 8, 8, 1), np.float32))
    with pytest.raises(RuntimeError, match="closed"):
        stream.submit(images()[:1])
    with pytest.raises(ValueError, match="max_waiting must be at least 1"):
        AdaptiveStream(classifier, max_waiting=0)
