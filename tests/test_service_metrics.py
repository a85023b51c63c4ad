"""What Prometheus reads: in one process, and added up over the workers of a real service."""

import asyncio
import contextvars
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from medae_service import metrics
from medae_service.problems import CODES
from tests.service_parts import CANARY, PNG, client_of, denoiser, png, recorded_log, segmenter
from tests.test_service_process import Running, gone, start, stop, wait_for

LABELS = {
    "stage": set(metrics.STAGES),
    "verdict": {"ok", "review", "reject", "none"},
    "model": {"denoiser", "segmenter"},
    "status": {"200", "499", *(str(code.status) for code in CODES.values())},
}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# in one process


def test_a_stage_is_timed_for_all_and_for_its_request() -> None:
    before = value("medae_stage_seconds_count", stage="decode")
    spent = metrics.begin_request()
    with metrics.stage("decode"):
        pass
    metrics.observe("queue", 1.5)
    metrics.observe("queue", 2.0)
    with pytest.raises(ZeroDivisionError), metrics.stage("answer"):
        1 / 0  # noqa: B018
    assert value("medae_stage_seconds_count", stage="decode") == before + 1
    assert spent["queue"] == 3.5
    assert set(spent) == {"decode", "queue", "answer"}


def test_threads_count_for_the_request_whose_context_they_have() -> None:
    def work() -> None:
        metrics.observe("forward", 1.0)

    async def request() -> metrics.Spent:
        spent = metrics.begin_request()
        await asyncio.to_thread(work)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()  # work for many requests
            pool.submit(contextvars.copy_context().run, work).result()
        return spent

    async def two() -> list[metrics.Spent]:
        return await asyncio.gather(request(), request())

    before = value("medae_stage_seconds_sum", stage="forward")
    assert asyncio.run(two()) == [{"forward": 2.0}, {"forward": 2.0}]
    assert value("medae_stage_seconds_sum", stage="forward") == before + 6


def test_every_stage_is_there_from_the_start() -> None:
    for stage in metrics.STAGES:
        assert REGISTRY.get_sample_value("medae_stage_seconds_count", {"stage": stage}) is not None


def test_requests_are_counted_by_route_and_status() -> None:
    def counts() -> dict[tuple[str, str], float]:
        (family,) = metrics.REQUESTS.collect()
        return {
            (sample.labels["route"], sample.labels["status"]): sample.value
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    before, uploaded = counts(), value("medae_upload_bytes_total")
    with recorded_log() as log, client_of(segmenter()) as client:
        assert client.post("/v1/segment", files=PNG).status_code == 200
        assert client.post("/v1/segment", files={"file": CANARY.encode()}).status_code >= 400
        for path in (f"/{CANARY}", f"/v1/{CANARY}", f"/v1/segment/{CANARY}"):
            assert client.get(path).status_code == 404
        assert client.get("/v1/models", headers={"Host": CANARY}).status_code == 400
    new = {key: count - before.get(key, 0) for key, count in counts().items() if count != before.get(key, 0)}
    assert new.pop(("/v1/segment", "200")) == 1
    assert new.pop(("-", "404")) == 3
    assert new.pop(("/v1/models", "400")) == 1
    assert [route for route, _ in new] == ["/v1/segment"]
    assert value("medae_upload_bytes_total") - uploaded > len(png())
    entries = [json.loads(line) for line in log.getvalue().splitlines() if '"message": "request"' in line]
    assert all(set(entry["stages_ms"]) <= set(metrics.STAGES) for entry in entries)
    assert all(sum(entry["stages_ms"].values()) <= entry["ms"] + 1 for entry in entries if entry["status"] == 200)


def test_verdicts_are_counted_by_model() -> None:
    before = value("medae_gate_verdicts_total", model="denoiser", verdict="review")
    metrics.answered("denoiser", 200, "review")
    metrics.answered("denoiser", 422)
    assert value("medae_gate_verdicts_total", model="denoiser", verdict="review") == before + 1
    assert value("medae_images_total", model="denoiser", status="422") >= 1


# over processes

WORKER = "import sys; from medae_service import metrics as m; m.QUEUE_DEPTH.set(3); m.answered('a', 200, 'ok')"
READER = (
    "from medae_service import metrics; from prometheus_client import CollectorRegistry, generate_latest\n"
    "from prometheus_client.multiprocess import MultiProcessCollector\n"
    "metrics.forget_the_dead(); registry = CollectorRegistry(); MultiProcessCollector(registry)\n"
    "print(generate_latest(registry).decode())"
)


def test_workers_are_added_up_and_the_dead_have_no_queue(tmp_path: Path) -> None:
    environment = {**os.environ, metrics.FOLDER_VARIABLE: str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    living = subprocess.Popen(
        [sys.executable, "-c", WORKER + "; print(flush=True); sys.stdin.read()"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert living.stdout is not None
        living.stdout.readline()
        done = subprocess.run([sys.executable, "-c", READER], env=environment, check=True, capture_output=True)
    finally:
        living.communicate(b"")
    text = done.stdout.decode()
    assert 'medae_images_total{model="a",status="200"} 3.0' in text
    assert "\nmedae_queue_depth 3.0\n" in text


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("s")
    denoiser().save(folder / "denoiser")
    running = start(folder, "denoiser", "--workers", "2")
    yield running
    stop(running)


def read(service: Running) -> dict[tuple[str, ...], float]:
    """Every sample of ours: name and label values -> value."""
    text = httpx.get(f"{service.url}/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("medae_"):
                found[(sample.name, *sample.labels.values())] = sample.value
                for label, chosen in sample.labels.items():
                    assert label in ("le", "route") or chosen in LABELS[label], sample
    return found


def test_one_page_has_the_numbers_of_all_workers(service: Running) -> None:
    with ThreadPoolExecutor(6) as pool:
        ask = lambda _: httpx.post(f"{service.url}/v1/denoise", files={"file": png()}, timeout=60).status_code  # noqa: E731
        assert set(pool.map(ask, range(24))) == {200}
    httpx.post(f"{service.url}/v1/denoise", files={"file": CANARY.encode()})
    httpx.get(f"{service.url}/v1/{CANARY}")
    for _ in range(8):  # whichever worker answers
        found = read(service)
        assert found["medae_requests_total", "/v1/denoise", "200"] == 24
        assert found["medae_requests_total", "-", "404"] == 1
        assert found["medae_upload_bytes_total",] > 24 * len(png())
        assert found["medae_queue_depth",] == 0
    assert {key[1] for key in found if key[0] == "medae_requests_total"} <= {"/v1/denoise", "/metrics", "/livez", "-"}


def test_every_stage_of_a_request_is_measured(service: Running) -> None:
    before = read(service)
    assert httpx.post(f"{service.url}/v1/denoise", files={"file": png()}).status_code == 200
    after = read(service)
    for stage in metrics.STAGES:
        assert after["medae_stage_seconds_count", stage] > before["medae_stage_seconds_count", stage], stage
    assert after["medae_batch_size_count",] > before.get(("medae_batch_size_count",), 0)
    images, verdicts = ("medae_images_total", "denoiser", "200"), ("medae_gate_verdicts_total", "denoiser", "none")
    assert after[images] == before[images] + 1
    assert after[verdicts] == before[verdicts] + 1
    entry = [json.loads(line) for line in service.log.read_text().splitlines() if '"path": "/v1/denoise"' in line][-1]
    assert set(entry["stages_ms"]) >= {"upload", "decode", "answer"}


def test_a_killed_workers_counts_stay(service: Running) -> None:
    before = read(service)["medae_requests_total", "/v1/denoise", "200"]
    killed = service.children()[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: gone(killed), 5)
    wait_for(lambda: len([pid for pid in service.children() if not gone(pid)]) == 2, 15)
    assert read(service)["medae_requests_total", "/v1/denoise", "200"] == before
