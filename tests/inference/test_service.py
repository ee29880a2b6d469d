"""The web service of examples/service: predictions, refusals, load shedding, metrics, shutdown."""

import dataclasses
import io
import json
import re
import threading
import time

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from examples.service.admission import Admission
from examples.service.app import Settings, create_app
from imta_jax.inference import AdaptiveClassifier, load_exported
from imta_jax.inference.stream.worker import Worker

SETTINGS = Settings(
    budget=0.9, max_in_flight=4, max_batch_size=8, measure=False, audit_share=1.0, max_pixels=10_000
)


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def exported(exported_folder):
    return load_exported(exported_folder, check_golden=False)


@pytest.fixture(scope="module")
def client(exported):
    with TestClient(create_app(lambda: exported, SETTINGS)) as client:
        deadline = time.monotonic() + 300
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield client


@pytest.fixture
def stopped_workers(monkeypatch):
    """An event without which the stream computes nothing."""
    resume, step = threading.Event(), Worker.step
    monkeypatch.setattr(Worker, "step", lambda worker: resume.wait() and step(worker))
    yield resume
    resume.set()


def metric(client, name):
    text = client.get("/metrics").text
    return float(re.search(rf"^imta_{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def test_responses_are_the_predictions_of_the_network(client, exported, images):
    contents = [jpeg(image[..., 0]) for image in images[:6]]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(c)))[..., None] for c in contents])
    expected = exported.adaptive(0.9, max_batch_size=8).predict(pixels)
    for i, content in enumerate(contents):
        response = client.post("/classify", content=content, headers={"x-request-id": f"r{i}"})
        actual = response.json()
        assert response.status_code == 200 and actual["id"] == f"r{i}" and actual["in_time"]
        assert response.headers["x-request-id"] == f"r{i}"
        assert actual["label"] == expected.labels[i] and actual["exit"] == expected.exit[i] + 1
        assert actual["class"] == exported.class_names[actual["label"]]
        assert actual["confidence"] == pytest.approx(expected.confidence[i], abs=1e-5)
    assert metric(client, "latency_seconds_count") == 6
    assert metric(client, 'latency_seconds{quantile="0.5"}') > 0
    assert client.get("/live").status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 400, "empty"),
        (b"GIF89a", 415, "other_format"),
        (jpeg(np.zeros((16, 16), np.uint8))[:-30], 422, "truncated"),
        (jpeg(np.zeros((17, 16), np.uint8)), 422, "image_size"),
        (jpeg(np.zeros((101, 100), np.uint8)), 413, "too_large"),
        (bytes(10_000_001), 413, "body_too_large"),
    ],
)
def test_damaged_images_are_refused_by_name(client, content, status, reason):
    response = client.post("/classify", content=content)
    assert (response.status_code, response.json()["error"]) == (status, reason)
    assert metric(client, f'refused_total{{reason="{reason}"}}') == 1
    assert metric(client, "in_flight") == 0


@pytest.mark.parametrize("deadline", ["0", "nan", "soon", "inf"])
def test_invalid_deadline_is_refused(client, deadline):
    response = client.post(f"/classify?deadline_ms={deadline}", content=b"")
    assert (response.status_code, response.json()["error"]) == (400, "deadline")


def post_in_thread(client, content, responses, **headers):
    def post():
        responses.append(client.post("/classify", content=content, headers=headers))

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def wait_for(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_full_service_sheds_load(client, images, stopped_workers):
    content, responses = jpeg(images[0, ..., 0]), []
    threads = [post_in_thread(client, content, responses) for _ in range(4)]
    wait_for(lambda: metric(client, "in_flight") == 4)
    response = client.post("/classify", content=content)
    assert (response.status_code, response.json()["error"]) == (503, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    stopped_workers.set()
    for thread in threads:
        thread.join()
    assert [response.status_code for response in responses] == [200] * 4


def test_deadline_that_cannot_be_met_is_shed(client, images, stopped_workers):
    content, responses = jpeg(images[0, ..., 0]), []
    thread = post_in_thread(client, content, responses)
    wait_for(lambda: metric(client, "in_flight") == 1)
    response = client.post("/classify", content=content, headers={"x-deadline-ms": "0.001"})
    assert (response.status_code, response.json()["error"]) == (503, "deadline")
    assert "retry-after" in response.headers
    stopped_workers.set()
    thread.join()
    assert responses[0].status_code == 200


def test_images_are_audited(client):
    wait_for(lambda: metric(client, "audited") == metric(client, "latency_seconds_count") > 0)
    assert 0 <= metric(client, "audit_agreement") <= 1


def test_slow_responses_raise_the_expected_latency():
    admission = Admission(8)
    admission._single_ms, admission._image_ms = 2.0, 1.0
    with admission.request() as expected_ms:
        assert (expected_ms, admission.expected_ms()) == (2.0, 3.0)
        assert admission.reason_to_shed(5.0) is None
        for _ in range(50):
            admission.record(expected_ms, 20.0)
        assert admission.reason_to_shed(5.0) == "deadline"
    assert admission.reason_to_shed(5.0) is None  # none in flight


def test_stopped_server_responds_to_accepted_requests(exported, images, stopped_workers):
    app = create_app(lambda: exported, SETTINGS)
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    serving = threading.Thread(target=server.run)
    serving.start()
    wait_for(lambda: server.started and app.state.service.stream is not None)
    port = server.servers[0].sockets[0].getsockname()[1]
    responses = []
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        content = jpeg(images[0, ..., 0])
        threads = [post_in_thread(client, content, responses) for _ in range(3)]
        wait_for(lambda: app.state.service.admission.in_flight == 3)
        server.should_exit = True  # what its handler of SIGTERM does
        time.sleep(0.2)
        assert not responses
        stopped_workers.set()
        for thread in threads:
            thread.join()
    serving.join(timeout=60)
    assert [response.status_code for response in responses] == [200] * 3
    with pytest.raises(RuntimeError, match="closed"):
        app.state.service.stream.submit(images[0])
    assert json.loads(responses[0].text)["class"] in exported.class_names


def test_service_is_ready_before_its_stages_are_measured(exported, images, monkeypatch):
    resume = threading.Event()
    monkeypatch.setattr(AdaptiveClassifier, "measure", lambda *_, is_stopped: resume.wait())
    settings = dataclasses.replace(SETTINGS, measure=True)
    with TestClient(create_app(lambda: exported, settings)) as client:
        wait_for(lambda: client.get("/ready").status_code == 200)
        before = client.post("/classify", content=jpeg(images[0, ..., 0])).json()
        assert metric(client, "warm") == 0
        resume.set()
        wait_for(lambda: metric(client, "warm") == 1)
        after = client.post("/classify", content=jpeg(images[0, ..., 0])).json()
    assert (before["label"], before["exit"]) == (after["label"], after["exit"])


def test_service_is_not_ready_without_its_network(caplog):
    def fail():
        raise ValueError("no such folder")

    with TestClient(create_app(fail, SETTINGS)) as client:
        wait_for(lambda: "no such folder" in caplog.text)
        assert client.get("/live").status_code == 200
        assert client.get("/ready").status_code == 503
        response = client.post("/classify", content=b"")
        assert (response.status_code, response.json()["error"]) == (503, "not_ready")
        assert "imta_ready 0" in client.get("/metrics").text
