"""Many threads ask while one changes the stage: every answer is one stage's, bit for bit."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from pwl_hf import PWLForImageClassification, Sources, StageError
from tests.slow import slow_but
from tests.streaming.helpers import Answers
from tests.tiny import tiny_images

THREADS = 8


@contextmanager
def asking(ask: Callable[[int], None], threads: int = THREADS) -> Iterator[None]:
    """`threads` threads that call `ask(thread)` again and again; what one of them raises is raised at the end."""
    stop, errors = threading.Event(), []

    def run(number: int) -> None:
        try:
            with torch.no_grad():
                while not stop.is_set():
                    ask(number)
                    # As requests come: without it the threads mostly wait for one another.
                    time.sleep(0.03)
        except BaseException as error:
            errors.append(error)

    # Threads take turns more often than by default: more ways to be amid a swap, and no waiting.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join(60)
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


def swap(model: PWLForImageClassification, count: int, enough: Callable[[], bool] = lambda: True) -> int:
    """Up by streams, down and up by hand, until `count` swaps are made and enough was seen, for a minute at most."""
    swaps, until = 0, time.monotonic() + 60
    while swaps < count or not (enough() or time.monotonic() > until):
        top = random.choice([2, 3, 4])
        stream = model.stream_stages(top)
        assert stream.wait(60)
        assert stream.exception is None
        swaps += top
        for stage in random.sample(range(top), k=min(3, top)):
            model.set_stage(stage)
            swaps += 1
        model.set_stage(0)
        swaps += 1
    return swaps


@pytest.mark.parametrize("family", slow_but(["resnet"], ["vit", "resnet"]))
def test_every_answer_through_100_swaps_is_exactly_one_stages(load, answers, family: str) -> None:
    random.seed(7)
    model = load(family)
    expected: list[Answers] = [answers(family, seed) for seed in range(THREADS)]
    seen: list[list[int | None]] = [[] for _ in range(THREADS)]

    def ask(number: int) -> None:
        logits = model(expected[number].images).logits
        seen[number].append(expected[number].stage_of(logits))

    with asking(ask):
        assert swap(model, 100, lambda: min(map(len, seen)) > 50 and min(len(set(s)) for s in seen) >= 3) >= 100
    assert not [stage for found in seen for stage in found if stage is None]
    assert {stage for found in seen for stage in found} == {0, 1, 2, 3, 4}
    # Each thread was there all along: it answered often, and from several stages.
    assert min(len(found) for found in seen) > 50
    assert min(len(set(found)) for found in seen) >= 3


@pytest.mark.parametrize("family", slow_but(["resnet"], ["vit", "resnet"]))
def test_every_answer_of_a_mask_asked_for_is_that_masks(load, family: str) -> None:
    model, images = load(family, keep_all=True), tiny_images(family)
    with torch.no_grad():
        expected = {str(mask): load(family, keep_all=True)(images, sources=str(mask)).logits for mask in Sources.all(4)}
    masks, wrong, counts = sorted(expected), [], [0] * THREADS
    chosen = [random.Random(number) for number in range(THREADS)]

    def ask(number: int) -> None:
        mask = chosen[number].choice(masks)
        if not torch.equal(model(images, sources=mask).logits, expected[mask]):
            wrong.append(mask)
        counts[number] += 1

    until = time.monotonic() + 60
    with asking(ask):
        for turn in itertools.count():
            model.set_stage(turn % 5)
            time.sleep(0.01)
            if (turn >= 50 and min(counts) > 20) or time.monotonic() > until:
                break
    assert wrong == []
    assert min(counts) > 20


@pytest.mark.parametrize("family", slow_but(["resnet"], ["vit", "resnet"]))
def test_sources_of_the_stage_answer_as_it_or_are_refused(load, answers, family: str) -> None:
    """A mask whose pieces just left is refused; it is never answered by others."""
    model, expected = load(family), answers(family)
    masks, found, refused = ["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"], [], []

    def ask(number: int) -> None:
        stage = number % 5
        try:
            logits = model(expected.images, sources=masks[stage]).logits
        except StageError:
            refused.append(stage)
        else:
            found.append((stage, expected.stage_of(logits)))

    with asking(ask):
        swap(model, 24, lambda: len({stage for stage, _ in [*found]}) == len(set(refused)) == 5)
    assert {stage for stage, _ in found} == {0, 1, 2, 3, 4}
    assert [pair for pair in found if pair[0] != pair[1]] == []
    assert set(refused) == {0, 1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "resnet", "swin", "pwl_vgg", "convnext"])
def test_every_answer_through_2000_swaps_is_exactly_one_stages(load, answers, family: str) -> None:
    random.seed(8)
    model = load(family)
    expected = [answers(family, seed) for seed in range(THREADS)]
    wrong = []

    def ask(number: int) -> None:
        if expected[number].stage_of(model(expected[number].images).logits) is None:
            wrong.append(number)

    with asking(ask):
        swap(model, 2000)
    assert wrong == []
