"""Replicas of Ray Serve on one machine: the first of all, and the second of two."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from benchmarks.speed.answering import quantile
from benchmarks.speed.figures import Figure, Measured, Place, ratios
from benchmarks.speed.hub import PWL, environment, plain_teacher, serving
from benchmarks.speed.hub import TEACHER as TEACHER_ID
from benchmarks.speed.replicas import (
    NOTHING,
    RUNTIME,
    TEACHER,
    TORCH,
    Load,
    application,
    ask,
    cluster,
    deployed,
    empty,
    second_started,
)
from benchmarks.speed.served import served_repository

# Clients of the second replica's measure: for one replica twice as many as Ray is told to let it have.
CLIENTS = 4
# How long they are watched once Ray starts the second replica, in seconds.
WINDOW, LONGEST = 15, 120


def from_zero(place: Place) -> Measured:
    """From a request that finds no replica to its answer; files on the node, and from a Hub with an empty cache."""
    folder, teacher = served_repository(place), served_repository(place, plain_teacher(place))
    local = {TEACHER: str(teacher), TORCH: str(folder), RUNTIME: str(folder), NOTHING: ""}
    remote = {TEACHER: TEACHER_ID, TORCH: PWL, RUNTIME: PWL}
    image = _image(place.pair.size)
    seconds: dict[str, list[float]] = {}
    with (
        TemporaryDirectory(dir=place.data) as home,
        serving({PWL: folder, TEACHER_ID: teacher}, place.data / f"{place.name}-ray-hub") as hub,
        cluster(hub.environment(Path(home))),
    ):
        # The first round brings what all import into the page cache.
        for turn in range(place.rounds(1, of=3) + 1):
            for where, sources in (("files on the node", local), ("from a Hub", remote)):
                for way, source in sources.items():
                    empty(Path(home))
                    with deployed(application(way, source)) as asking:
                        taken = ask(asking, image).seconds
                    if turn:
                        seconds.setdefault(f"{way}, {where}", []).append(taken)
    figures = []
    for where in ("files on the node", "from a Hub"):
        of = {name: times for name, times in seconds.items() if name.endswith(where)}
        figures += ratios(of, f"{TEACHER}, {where}")
        figures.append(Figure.of(f"{TEACHER}, {where}", [1e3 * value for value in of[f"{TEACHER}, {where}"]], "ms"))
    return Measured(figures, {"seconds": seconds})


def second(place: Place) -> Measured:
    """Requests of more clients than one replica is meant to have, while the second one comes up; files on the node."""
    folder, teacher = served_repository(place), served_repository(place, plain_teacher(place))
    sources = {TEACHER: str(teacher), TORCH: str(folder), RUNTIME: str(folder)}
    image = _image(place.pair.size)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in sources}
    with TemporaryDirectory(dir=place.data) as home, cluster(environment(Path(home))):
        for _ in range(place.rounds(1, of=3)):
            for way, source in sources.items():
                runs[way].append(_while_second_comes(way, source, image))
    figures = []
    for name in runs[TEACHER][0]:
        unit = "answers" if name.startswith("answers") else "ms"
        own = {way: [run[name] for run in found] for way, found in runs.items()}
        figures += [Figure.of(f"{name}: {way}", values, unit) for way, values in own.items()]
        figures += [
            Figure.ratio(f"{name}: {way}, against {TEACHER}", values, own[TEACHER], TEACHER)
            for way, values in own.items()
            if way != TEACHER
        ]
    return Measured(figures, {"runs": runs})


def _while_second_comes(way: str, source: str, image: bytes) -> Mapping[str, float]:
    """What the clients of one deployment saw, the first replica being grown up when they come."""
    with deployed(application(way, source)) as asking:
        first = ask(asking, image)
        while not asking.get("/stage").json()["done"]:
            time.sleep(0.1)
        with Load(CLIENTS, image) as load:
            started = second_started()
            while not (second := [a for a in load.answers if a.replica != first.replica]):
                if time.monotonic() > started + LONGEST:
                    raise RuntimeError(f"{way}: the second replica did not answer within {LONGEST} s")
                time.sleep(0.05)
            time.sleep(max(0.0, started + WINDOW - time.monotonic()))
    seen = [1e3 * answer.seconds for answer in load.answers if started < answer.ended < started + WINDOW]
    return {
        "second replica, from its start to its first answer": 1e3 * (min(a.ended for a in second) - started),
        f"median in the {WINDOW} s from then": quantile(seen, 0.5),
        f"p95 in the {WINDOW} s from then": quantile(seen, 0.95),
        f"answers in the {WINDOW} s from then": float(len(seen)),
    }


def _image(size: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), os.urandom(3 * size * size)).save(file, "JPEG")
    return file.getvalue()
