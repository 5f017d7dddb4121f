"""The example server under load from a real client, while its model grows from a Hub that is slow or fails."""

from __future__ import annotations

import re
import threading
import time

from examples import time_verification
from tests.hub import Fault
from tests.repository.helpers import publish, shard
from tests.serving.served import Served, expected, png, serving
from tests.streaming.helpers import until


def _keep_asking(served: Served, image: bytes, answers: list, ended: threading.Event) -> None:
    with served.new_client() as client:
        while not ended.is_set():
            answers.append(client.post("/predict", content=image))
            time.sleep(0.02)


def test_answers_from_the_first_second_and_grows_into_the_teacher(hub, repo_id, repository, backend, fresh_env):
    publish(hub, repo_id, backend.folder)
    image = png()
    right = expected(repository, image)
    assert len({str(answer) for answer in right}) == 5, "stages that cannot be told apart"
    # Each stage comes when everyone who asks was answered by the one before.
    stalls = [Fault("stall", shard(stage), seconds=3600, times=None) for stage in range(1, 5)]
    environment = {**fresh_env, "PWL_REPO": repo_id}
    with (
        hub.faulty(*stalls),
        hub.record() as requests,
        backend.serving(["-m", "uvicorn", "examples.serve:app", "--port", "0"], environment) as served,
    ):
        first = served.client.post("/predict", content=image)
        assert first.status_code == 200
        assert not [r for r in requests if r.file == shard(4) and r.method == "GET" and r.sent], "it waited for all"
        assert served.client.get("/healthz").json()["status"] == "ok"
        ended = threading.Event()
        asked: list[list] = [[] for _ in range(4)]
        clients = [threading.Thread(target=_keep_asking, args=(served, image, found, ended)) for found in asked]
        for client in clients:
            client.start()
        seen = [served.stage()]
        for stage in range(5):
            until(lambda: all(found and found[-1].json()["stage"] == stage for found in asked))  # noqa: B023
            seen.append(served.stage())
            if stage < 4:
                stalls[stage].times = 0
                hub.throttle.release()
        seen.append(served.wait_until(lambda now: now["done"]))
        ended.set()
        for client in clients:
            client.join()
    assert [s["stage"] for s in seen] == sorted(s["stage"] for s in seen)
    assert [s["bytes_done"] for s in seen] == sorted(s["bytes_done"] for s in seen)
    assert seen[-1]["bytes_done"] == seen[-1]["bytes_total"]
    assert not [s for s in seen if s["exception"]]
    everything = [first, *(answer for found in asked for answer in found)]
    assert {answer.status_code for answer in everything} == {200}
    for answer in everything:
        body = answer.json()
        backend.check(body["predictions"], right[body["stage"]])
    for found in asked:
        stages = [answer.json()["stage"] for answer in found]
        assert stages == sorted(stages)
    assert {answer.json()["stage"] for answer in everything} == {0, 1, 2, 3, 4}


def test_keeps_answering_through_a_lasting_fault_and_grows_on_when_it_ends(
    hub, repo_id, repository, backend, fresh_env
):
    publish(hub, repo_id, backend.folder)
    image = png()
    right = expected(repository, image)
    environment = {**fresh_env, "PWL_RETRY_SECONDS": "0.2", "PORT": "0"}
    # Not one that is retried for long: the server's own retries are what counts here.
    lasting = Fault("status", shard(3), status=403, times=None)
    arguments = ["examples/serve.py", repo_id, *backend.options()]
    # By the option alone.
    with hub.faulty(lasting), serving(arguments, environment, backend.python) as served:
        failed = served.wait_until(lambda now: now["exception"])
        assert failed["stage"] == 2
        assert not failed["done"]
        assert 0 < failed["bytes_done"] < failed["bytes_total"]
        assert shard(3) in failed["exception"]
        assert repo_id in failed["exception"]
        assert "token" in failed["exception"]
        for _ in range(20):
            answer = served.client.post("/predict", content=image)
            assert (answer.status_code, answer.json()["stage"]) == (200, 2)
            backend.check(answer.json()["predictions"], right[2])
        assert served.client.get("/healthz").status_code == 200
        hub.faults.clear()
        grown = served.wait_until(lambda now: now["done"])
        assert grown["bytes_done"] == grown["bytes_total"] == failed["bytes_total"]
        assert grown["exception"] is None
        answer = served.client.post("/predict", content=image).json()
        assert answer["stage"] == 4
        backend.check(answer["predictions"], right[4])
        backend.check(served.client.post("/predict?top_k=2", content=image).json()["predictions"], right[4][:2])
        refused = served.client.post("/predict", content=b"no image")
        assert refused.status_code == 400
        assert "no image that can be read" in refused.json()["detail"]
    assert any("stays at stage 2" in line for line in served.log)


def test_the_times_of_verification_are_told_for_any_repository(repository, capsys):
    time_verification.main([str(repository), "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    pattern = r"build [\d.]+ ms, hash [\d.]+ ms \([\d.]+ of it\), remembered [\d.]+ ms \([\d.]+\)"
    assert [bool(re.fullmatch(pattern, line)) for line in lines] == [True, True]
