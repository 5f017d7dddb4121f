"""The deployment for Ray Serve, on a cluster of this machine: from no replica to two, and back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.serving.images import ROOT
from tests.serving.served import expected, png

# A process of its own: Ray takes over whatever starts it.
CLUSTER = """
import json, sys, tempfile, threading, time
import httpx2, ray
from ray import serve
from examples import ray_serve

image = bytes.fromhex(sys.stdin.readline())
seen = {}

def replicas():
    (found,) = serve.status().applications["default"].deployments.values()
    return sum(found.replica_states.values())

def wait_for(count):
    end = time.monotonic() + 90
    while replicas() != count:
        assert time.monotonic() < end, serve.status()
        time.sleep(0.1)

def keep_asking(answers, ended):
    with httpx2.Client(base_url="http://127.0.0.1:8766", timeout=60, trust_env=False) as client:
        while not ended.is_set():
            answers.append((client.post("/predict", content=image)))

with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": 8766})
    settings = ray_serve.Settings(repo=sys.argv[1], runtime=sys.argv[2] == "runtime", max_replicas=2, idle_seconds=1)
    serve.run(ray_serve.app(settings), route_prefix="/")
    seen["at first"] = replicas()
    client = httpx2.Client(base_url="http://127.0.0.1:8766", timeout=60, trust_env=False)
    first = client.post("/predict", content=image)
    seen["first"] = first.json()
    seen["refused"] = client.post("/predict", content=b"no image").status_code
    while not (stage := client.get("/stage").json())["done"]:
        time.sleep(0.05)
    seen["stage"] = stage
    answers, ended = [], threading.Event()
    clients = [threading.Thread(target=keep_asking, args=(answers, ended)) for _ in range(6)]
    for each in clients:
        each.start()
    end = time.monotonic() + 90
    while len({answer.headers["x-replica"] for answer in answers}) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    ended.set()
    for each in clients:
        each.join()
    seen["statuses"] = sorted({answer.status_code for answer in answers})
    seen["replicas"] = len({answer.headers["x-replica"] for answer in answers})
    seen["answers"] = [answer.json() for answer in answers[:: max(1, len(answers) // 50)]]
    wait_for(0)
    serve.shutdown()
    ray.shutdown()
print(json.dumps(seen))
"""
# Nothing leaves this machine; and Ray looks at its queues more often than every 10 s.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


@pytest.mark.slow
def test_deployment_scales_from_no_replica_to_two_which_grow_and_back_to_none(repository, backend, fresh_env):
    pytest.importorskip("ray", reason='Ray Serve is not installed: pip install "ray[serve]"')
    image = png()
    right = expected(repository, image)
    command = [sys.executable, "-c", CLUSTER, str(backend.folder), backend.name]
    environment = {
        **fresh_env,
        **SETTINGS,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, input=image.hex() + "\n", env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["at first"] == 0
    assert seen["refused"] == 400
    assert (seen["stage"]["stage"], seen["stage"]["exception"]) == (4, None)
    assert (seen["statuses"], seen["replicas"]) == ([200], 2)
    for answer in [seen["first"], *seen["answers"]]:
        backend.check(answer["predictions"], right[answer["stage"]])
