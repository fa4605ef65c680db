"""The line of snapshots against a simple model of it, and with threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.evaluation.backlog import Backlog, Offer, WhenBusy


class Item:
    """Equal to every other one: only identity tells them apart."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Item)

    __hash__ = None

    def __repr__(self) -> str:
        return f"Item({self.number})"


def numbers(items: list[Item]) -> list[int]:
    return [item.number for item in items]


@settings(max_examples=300, deadline=None)
@given(
    actions=st.lists(st.sampled_from(["offer", "offer", "take", "done", "close"]), max_size=30),
    max_pending=st.integers(1, 4),
    when_busy=st.sampled_from(["coalesce", "queue"]),
    data=st.data(),
)
def test_equals_a_simple_model(actions: list[str], max_pending: int, when_busy: Any, data: st.DataObject) -> None:
    backlog: Backlog[Item] = Backlog(max_pending, when_busy)
    waiting: list[int] = []
    running: list[Item] = []
    closed = False
    for number, action in enumerate(actions):
        if action == "offer":
            offer = backlog.offer(Item(number))
            full = when_busy == "coalesce" and len(waiting) + len(running) >= max_pending
            if closed or (full and not waiting):
                assert offer == Offer(False, None)
            else:
                dropped = waiting.pop() if full else None
                waiting.append(number)
                assert offer.accepted
                assert (None if offer.dropped is None else offer.dropped.number) == dropped
        elif action == "take":
            item = backlog.take(0.0)
            assert (None if item is None else item.number) == (waiting.pop(0) if waiting else None)
            if item is not None:
                running.append(item)
        elif action == "done" and running:
            backlog.done(running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif action == "close":
            backlog.close()
            closed = True
        assert numbers(backlog.pending) == numbers(running) + waiting
        assert backlog.closed == closed
        assert backlog.wait_until_empty(0.0) == (not running and not waiting)


def test_coalescing_keeps_the_oldest_and_the_newest() -> None:
    backlog: Backlog[str] = Backlog(3, "coalesce")
    for item in "abc":
        assert backlog.offer(item) == Offer(True)
    assert backlog.take(0) == "a"
    assert backlog.offer("d") == Offer(True, "c")
    assert backlog.pending == ["a", "b", "d"]


def test_with_room_for_one_a_new_one_is_refused_while_it_runs() -> None:
    backlog: Backlog[str] = Backlog(1, "coalesce")
    backlog.offer("a")
    backlog.take(0)
    assert backlog.offer("b") == Offer(False)
    backlog.done("a")
    assert backlog.offer("c") == Offer(True)


def in_thread(function: Callable[..., Any], *arguments: Any) -> tuple[threading.Thread, list[Any]]:
    results: list = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)), daemon=True)
    thread.start()
    return thread, results


def still_waits(thread: threading.Thread) -> bool:
    thread.join(0.05)
    return thread.is_alive()


def test_waiting_for_room_ends_when_one_is_done() -> None:
    backlog: Backlog[str] = Backlog(1, "wait")
    backlog.offer("a")
    thread, results = in_thread(backlog.offer, "b")
    assert still_waits(thread)
    assert backlog.take(0) == "a"
    assert still_waits(thread)
    backlog.done("a")
    thread.join(10)
    assert results == [Offer(True)]
    assert backlog.pending == ["b"]


def test_closing_ends_all_waiting() -> None:
    full: Backlog[str] = Backlog(1, "wait")
    full.offer("a")
    offering, offered = in_thread(full.offer, "b")
    empty: Backlog[str] = Backlog(1, "queue")
    taking, taken = in_thread(empty.take, None)
    assert still_waits(offering)
    assert still_waits(taking)
    full.close()
    empty.close()
    offering.join(10)
    taking.join(10)
    assert (offered, taken) == ([Offer(False)], [None])
    assert full.take(None) == "a"  # what waited can still be taken
    assert full.take(None) is None


def test_waiting_until_empty_includes_what_runs() -> None:
    backlog: Backlog[str] = Backlog(2, "queue")
    backlog.offer("a")
    backlog.take(0)
    assert not backlog.wait_until_empty(0.01)
    thread, results = in_thread(backlog.wait_until_empty, None)
    assert still_waits(thread)
    backlog.done("a")
    thread.join(10)
    assert results == [True]


def test_take_gives_up_after_its_time() -> None:
    assert Backlog(1, "queue").take(0.02) is None


@pytest.mark.parametrize("when_busy", ["coalesce", "queue", "wait"])
def test_two_threads_lose_nothing_and_keep_the_order(when_busy: Any) -> None:
    backlog: Backlog[Item] = Backlog(2, when_busy)
    judged: list[int] = []
    most = []

    def judge() -> None:
        generator = random.Random(0)
        while (item := backlog.take(None)) is not None:
            most.append(len(backlog.pending))
            if generator.random() < 0.3:
                time.sleep(0.0002)
            judged.append(item.number)
            backlog.done(item)

    thread = threading.Thread(target=judge, daemon=True)
    thread.start()
    lost: list[int] = []
    for number in range(1000):
        offer = backlog.offer(Item(number))
        if not offer.accepted:
            lost.append(number)
        if offer.dropped is not None:
            lost.append(offer.dropped.number)
    assert backlog.wait_until_empty(30)
    backlog.close()
    thread.join(10)
    assert not thread.is_alive()
    assert judged == sorted(judged)
    assert sorted(judged + lost) == list(range(1000))
    assert judged[-1] == 999  # a slot always waits: the newest is judged
    if when_busy != "coalesce":
        assert lost == []
    if when_busy != "queue":
        assert max(most) <= 2


def test_done_needs_a_running_item() -> None:
    backlog: Backlog[Item] = Backlog(2, "queue")
    first, second = Item(1), Item(2)
    backlog.offer(first)
    backlog.offer(second)
    backlog.take(0)
    with pytest.raises(ValueError, match=r"Item\(2\) is not running\. HINT: `take` it first"):
        backlog.done(second)
    backlog.done(first)
    with pytest.raises(ValueError, match=r"Item\(1\) is not running"):
        backlog.done(first)
    assert backlog.pending[0] is second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "wait"), r"`max_pending` must be a whole number of at least 1, but got 0\. HINT: "),
        ((True, "wait"), r"`max_pending` must be a whole number of at least 1, but got True\. HINT: "),
        ((1, "drop"), r"Unknown when_busy 'drop'\. Known: coalesce, queue, wait\. HINT: "),
    ],
)
def test_arguments_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backlog(*arguments)


@pytest.mark.parametrize("when_busy", ["coalesce", "wait"])
def test_the_bound_does_not_hold_for_what_has_to_be_taken(when_busy: WhenBusy) -> None:
    backlog: Backlog[str] = Backlog(1, when_busy)
    assert [backlog.offer(item, always=True) for item in "abc"] == [Offer(True)] * 3
    assert backlog.pending == ["a", "b", "c"]
