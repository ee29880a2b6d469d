"""A stream: predictions equal those of a batch, deadlines, and a bounded queue."""

import queue
import threading
import time

import numpy as np
import pytest
from flax import nnx

from imta_jax.evaluation import confidence
from imta_jax.inference import AdaptiveClassifier, AdaptiveStream
from imta_jax.inference.engine.profiling import MeasurementStoppedError, load_or_measure_profile
from imta_jax.inference.stream.request import Request
from imta_jax.inference.stream.request_queue import RequestQueue
from imta_jax.inference.stream.settings import WorkerSettings
from imta_jax.inference.stream.worker import Worker
from imta_jax.models import build_classifier

TINY = {"preset": "quickstart", "num_exits": 3, "channels": 4, "growth_rate": 2}
IMAGES = np.random.default_rng(0).normal(size=(97, 16, 16, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    network = build_classifier(TINY, num_classes=5, image_shape=(16, 16, 1), rngs=nnx.Rngs(0))
    adaptive = AdaptiveClassifier(
        network,
        [0.5] * 3,
        max_batch_size=16,
        batch_sizes=(1, 4, 8),
        exit_fractions=[1 / 3] * 3,
        profile_dir=tmp_path_factory.mktemp("profiles"),  # empty: times are estimated
    )
    # The confidences of an untrained network are similar, so thresholds are in their middle.
    ordered = np.sort(confidence(adaptive.logits(IMAGES)), axis=1)
    middle = len(IMAGES) // 2
    thresholds = (ordered[:, middle] + ordered[:, middle + 1]) / 2
    return adaptive.with_thresholds(thresholds, exit_fractions=[1 / 3] * 3)


def assert_predicted_as_a_batch(adaptive, predictions, indices):
    expected = adaptive.predict(IMAGES[indices])
    np.testing.assert_array_equal(predictions.labels, expected.labels)
    np.testing.assert_array_equal(predictions.exit, expected.exit)
    np.testing.assert_allclose(predictions.confidence, expected.confidence, atol=1e-5)
    np.testing.assert_array_equal(predictions.macs, expected.macs)


def test_every_image_is_classified_once_in_a_long_run(adaptive):
    """Four threads submit batches of different sizes to a small stream, some with deadlines."""
    count, lock, submitted = 1200, threading.Lock(), []

    def submit(seed):
        rng = np.random.default_rng(seed)
        sent = 0
        while sent < count // 4:
            indices = rng.integers(0, len(IMAGES), rng.integers(1, 12))
            has_deadline = rng.random() < 0.2
            deadline_ms = 1.0 if has_deadline else None
            future = stream.submit(IMAGES[indices], deadline_ms=deadline_ms)
            sent += len(indices)
            with lock:
                submitted.append((indices, has_deadline, future))

    with AdaptiveStream(adaptive, max_waiting=64) as stream:
        threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    total = 0
    for indices, has_deadline, future in submitted:
        predictions = future.result(timeout=0)
        total += len(predictions.labels)
        assert len(predictions.labels) == len(indices)
        if not has_deadline:
            assert_predicted_as_a_batch(adaptive, predictions, indices)
            assert predictions.in_time.all()
    statistics = stream.statistics()
    assert statistics.completed == total >= count
    assert total == sum(len(indices) for indices, _, _ in submitted)
    assert 0 < statistics.p50_ms <= statistics.p99_ms
    assert 1 <= statistics.mean_batch_size <= 8


@pytest.fixture
def manual_worker(adaptive):
    """A worker without a thread, its queue, and the positions of completed images."""
    completed, requests = [], RequestQueue()
    settings = WorkerSettings.from_classifier(adaptive)
    worker = Worker(settings, requests, lambda _, positions: completed.extend(positions))
    return worker, requests, completed


def add_request(requests, indices, deadline=np.inf):
    request = Request(IMAGES[indices], deadline)
    with requests.condition:
        requests.add(request)
    return request


def test_image_after_its_deadline_gets_the_prediction_of_the_first_exit(adaptive, manual_worker):
    worker, requests, completed = manual_worker
    indices = np.flatnonzero(adaptive.predict(IMAGES).exit == 2)[:4]
    request = add_request(requests, indices, deadline=time.perf_counter() - 1)
    while worker.step():
        pass
    assert sorted(completed) == [0, 1, 2, 3] and request.complete
    assert worker.num_computed == 4
    request.finish(adaptive.macs)
    predictions = request.future.result()
    assert set(predictions.exit) == {0} and not predictions.in_time.any()
    first_exit = adaptive.logits(IMAGES[indices])[0]
    np.testing.assert_array_equal(predictions.labels, first_exit.argmax(axis=-1))


def test_stages_run_on_full_batches_while_images_are_queued(adaptive, manual_worker):
    worker, requests, _ = manual_worker
    for _ in range(5):
        add_request(requests, np.arange(len(IMAGES)))
    full = worker._settings.full_batch
    while requests.num_images >= full:
        assert worker.step()
        if requests.num_images >= full:
            assert worker.num_computed == full * worker.num_programs
    while worker.step():
        pass
    assert not worker.step()


def test_request_cannot_be_completed_twice():
    request = Request(IMAGES[:2], np.inf)
    result = (np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.float32))
    request.record(np.array([1]), *result)
    assert not request.complete
    with pytest.raises(RuntimeError, match=r"positions \[1\]"):
        request.record(np.array([1]), *result)


def test_submit_blocks_while_the_stream_is_full(adaptive, monkeypatch):
    resume = threading.Event()
    step = Worker.step
    monkeypatch.setattr(Worker, "step", lambda worker: resume.wait() and step(worker))
    with AdaptiveStream(adaptive, max_waiting=8) as stream:
        first = stream.submit(IMAGES[:8])
        with pytest.raises(queue.Full, match=r"8 images.*max_waiting.*8"):
            stream.submit(IMAGES[0], timeout_s=0.01)
        resume.set()
        assert len(first.result().labels) == 8
        assert len(stream.submit(IMAGES[0]).result().labels) == 1


def test_failure_of_a_worker_is_raised_by_every_future(adaptive, monkeypatch):
    def fail(*_):
        raise OSError("device lost")

    monkeypatch.setattr(Worker, "_dispatch_images", fail)
    with AdaptiveStream(adaptive) as stream:
        with pytest.raises(OSError, match="device lost"):
            stream.submit(IMAGES[:3]).result(timeout=60)
        with pytest.raises(RuntimeError, match="device lost"):
            stream.submit(IMAGES[:3])


def test_submitted_buffer_may_be_overwritten(adaptive):
    buffer = IMAGES[:20].copy()
    with AdaptiveStream(adaptive) as stream:
        future = stream.submit(buffer)
        buffer[:] = 0
        assert_predicted_as_a_batch(adaptive, future.result(), np.arange(20))


def test_second_stream_compiles_nothing(adaptive):
    with AdaptiveStream(adaptive) as stream:
        stream.submit(IMAGES).result()
    compiled = adaptive.programs.num_compiled
    with AdaptiveStream(adaptive) as stream:
        stream.submit(IMAGES).result()
    assert adaptive.programs.num_compiled == compiled


def test_invalid_submission_is_rejected(adaptive):
    with AdaptiveStream(adaptive, max_waiting=4) as stream:
        with pytest.raises(ValueError, match=r"max_waiting=4.*5"):
            stream.submit(IMAGES[:5])
        with pytest.raises(ValueError, match=r"deadline_ms.*nan"):
            stream.submit(IMAGES[:1], deadline_ms=float("nan"))
        with pytest.raises(ValueError, match=r"\b0\b"):
            stream.submit(IMAGES[:0])
        with pytest.raises(ValueError, match=r"\[N, 16, 16, 1\].*\(3, 8, 8, 1\)"):
            stream.submit(np.zeros((3, 8, 8, 1), np.float32))
    with pytest.raises(RuntimeError, match="closed"):
        stream.submit(IMAGES[:1])
    with pytest.raises(ValueError, match=r"max_waiting.*\b0"):
        AdaptiveStream(adaptive, max_waiting=0)


def test_observer_gets_every_image_once_in_the_order_of_submission(adaptive):
    seen = []
    rng = np.random.default_rng(0)
    sent = [rng.integers(0, len(IMAGES), rng.integers(1, 12)) for _ in range(60)]
    with AdaptiveStream(adaptive, observer=lambda *observed: seen.append(observed)) as stream:
        futures = [stream.submit(IMAGES[indices]) for indices in sent]
    assert len(seen) == len(sent)
    for indices, future, (images, predictions, truncated) in zip(sent, futures, seen, strict=True):
        np.testing.assert_array_equal(images, IMAGES[indices])
        np.testing.assert_array_equal(predictions.labels, future.result().labels)
        assert_predicted_as_a_batch(adaptive, predictions, indices)
        assert not truncated.any()


def test_images_that_a_deadline_stops_are_marked(adaptive, manual_worker):
    worker, requests, _ = manual_worker
    indices = np.flatnonzero(adaptive.predict(IMAGES).exit != 1)[:20]
    request = add_request(requests, indices, deadline=time.perf_counter() - 1)
    while worker.step():
        pass
    np.testing.assert_array_equal(request.truncated, adaptive.predict(IMAGES[indices]).exit > 0)


def test_failing_observer_is_logged_once_and_results_are_complete(adaptive, caplog):
    def fail(*_):
        raise OSError("disk full")

    with AdaptiveStream(adaptive, observer=fail) as stream:
        futures = [stream.submit(IMAGES[:3]) for _ in range(5)]
    assert all(len(future.result().labels) == 3 for future in futures)
    assert len(caplog.records) == 1 and "disk full" in caplog.text
    assert stream.statistics().waiting == 0


def test_stream_starts_with_the_full_network_and_switches_to_the_stages(adaptive, monkeypatch):
    resume = threading.Event()
    monkeypatch.setattr(AdaptiveClassifier, "measure", lambda *_, is_stopped: resume.wait())
    with AdaptiveStream(adaptive, wait=False) as stream:
        before = [stream.submit(IMAGES[i : i + 7]) for i in range(0, 90, 7)]
        before[0].result()
        assert not stream.is_warm
        assert all(len(worker._settings.segments) == 1 for worker in stream._workers)
        resume.set()
        deadline = time.monotonic() + 300
        while not stream.is_warm:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        after = [stream.submit(IMAGES[i : i + 7]) for i in range(0, 90, 7)]
        for i, futures in enumerate(zip(before, after, strict=True)):
            for future in futures:
                assert_predicted_as_a_batch(adaptive, future.result(), np.arange(7 * i, 7 * i + 7))
        expected = WorkerSettings.from_classifier(adaptive).segments
        assert stream._workers[0]._settings.segments == expected


def test_settings_change_between_steps_loses_no_image(adaptive, manual_worker):
    worker, requests, completed = manual_worker
    full = WorkerSettings.full_network(adaptive)
    for settings in (full, worker._settings, full):
        request = add_request(requests, np.arange(30))
        worker.step()
        worker.use(settings)
        while worker.step():
            pass
        assert request.complete and worker._settings is settings
    assert len(completed) == 90


def test_closed_stream_stops_its_measurement(adaptive, monkeypatch):
    measuring, stopped = threading.Event(), threading.Event()

    def measure(_, is_stopped):
        measuring.set()
        while not is_stopped():
            time.sleep(0.01)
        stopped.set()
        raise MeasurementStoppedError

    monkeypatch.setattr(AdaptiveClassifier, "measure", measure)
    with AdaptiveStream(adaptive, wait=False) as stream:
        assert measuring.wait(300)
        assert len(stream.submit(IMAGES[:3]).result().labels) == 3
    assert stopped.wait(60) and not stream.is_warm


def test_measurement_stops_when_asked(adaptive, tmp_path):
    with pytest.raises(MeasurementStoppedError):
        load_or_measure_profile(adaptive.programs, (1, 4), 1, tmp_path, is_stopped=lambda: True)
    assert not list(tmp_path.iterdir())
