from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.marks import BACKWARD, OTHER, Marks
from tests.analysis.spending import HandClock, spend

A, B, C = Label("forward", "a"), Label("forward", "b"), Label("forward", "c")


def test_stretches_nest_and_leave_no_gap() -> None:
    clock = HandClock()
    marks = Marks(clock)
    marks.open(A)
    clock.now = 1
    marks.push(B)
    clock.now = 3
    marks.push(B)  # the same again: no new stretch
    marks.pop()
    clock.now = 4
    marks.switch(C)
    clock.now = 7
    marks.pop()
    clock.now = 10
    assert marks.close() == ([A, B, C, A], [0, 1, 4, 7, 10])


def test_pop_to_a_depth_ends_all_that_was_begun_since() -> None:
    marks = Marks(HandClock())
    marks.open(A)
    depth = marks.depth
    marks.push(B)
    marks.push(C)
    marks.pop(depth)
    assert (marks.current, marks.depth) == (A, depth)
    marks.pop(depth)  # nothing left: no error
    marks.pop()
    assert marks.current == A


def test_only_the_thread_that_opened_a_step_is_heard_and_one_that_runs_a_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks = Marks(HandClock())
    marks.open()
    heard = []
    thread = threading.Thread(target=lambda: heard.append(marks.is_open))
    thread.start()
    thread.join()
    assert (marks.is_open, heard) == (True, [False])
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 3)  # as in the engine's thread of a device
    thread = threading.Thread(target=lambda: heard.append(marks.is_open))
    thread.start()
    thread.join()
    assert heard == [False, True]
    marks.close()
    assert not marks.is_open


def test_a_graph_that_outlives_its_step_marks_nothing() -> None:
    marks = Marks(HandClock())
    x = torch.ones(3, requires_grad=True)
    marks.open()
    out = x * 2
    marks.cover(out, BACKWARD)
    labels, _ = marks.close()
    out.sum().backward()
    assert labels == [OTHER]
    assert marks.labels == [OTHER, OTHER]  # the second is the end


def test_cover_takes_the_last_node_of_several_tensors_and_only_new_ones() -> None:
    clock = HandClock()
    marks = Marks(clock)
    x = torch.ones(3, requires_grad=True)
    before = spend(x, clock, 0, 1)
    marks.open()
    first, second = spend(before, clock, 0, 10), spend(before, clock, 0, 100)
    marks.cover({"parts": [before, (first, second)], "none": None}, A)
    marks.cover([first, second], B)  # nothing new
    marks.switch(OTHER)
    (first + second).sum().backward()
    labels, stamps = marks.close()
    assert labels == [OTHER, A, OTHER]
    assert [end - start for start, end in pairwise(stamps)] == [0, 111, 0]


def test_bound_ends_with_the_first_node_of_what_was_computed_since() -> None:
    clock = HandClock()
    marks = Marks(clock)
    x = torch.ones(3, requires_grad=True)
    marks.open()
    aside = spend(x, clock, 0, 1000)  # not an input of what follows, so its backward pass comes after it
    since = marks.begin_part()
    first = spend(x, clock, 0, 1)
    out = spend(first * spend(x, clock, 0, 2), clock, 0, 4)
    marks.cover(out, A)
    marks.bound({"out": [out]}, since, B)
    (out + aside).sum().backward()
    labels, stamps = marks.close()
    spent = dict(zip(labels, [end - start for start, end in pairwise(stamps)], strict=True))
    assert labels == [OTHER, A, B, OTHER]
    assert (spent[A], spent[B]) == (7, 1000)


def test_after_a_backward_pass_within_the_forward_pass_the_forward_pass_goes_on() -> None:
    clock = HandClock()
    marks = Marks(clock)
    x = torch.ones(3, requires_grad=True)
    marks.open()
    marks.push(A)
    out = spend(x, clock, 1, 10)
    marks.cover(out, B)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    clock.now += 100
    marks.pop()
    labels, stamps = marks.close()
    assert labels == [OTHER, A, B, A, OTHER]
    assert [end - start for start, end in pairwise(stamps)] == [0, 1, 10, 100, 0]
    assert grad.shape == (3,)


def test_a_backward_pass_that_raises_does_not_keep_its_label() -> None:
    clock = HandClock()
    marks = Marks(clock)
    x = torch.ones(3, requires_grad=True)
    marks.open()
    marks.push(A)
    out = x * 2
    out.register_hook(lambda _: (_ for _ in ()).throw(RuntimeError("out of memory")))
    top = out * 2
    marks.cover(top, B)
    with pytest.raises(RuntimeError, match="out of memory"):
        top.sum().backward()
    again = x * 3
    marks.cover(again, C)
    again.sum().backward()
    assert marks.current == A
    labels, _ = marks.close()
    assert labels == [OTHER, A, B, C, A]


def test_without_gradients_nothing_is_covered() -> None:
    marks = Marks(HandClock())
    x = torch.ones(3, requires_grad=True)
    marks.open()
    before = x * 2
    with torch.no_grad():
        marks.cover(before * 2, A)
    marks.cover(before, B)  # still to be had
    before.sum().backward()
    assert marks.close()[0] == [OTHER, B, OTHER]


@dataclass
class Output:
    tensor: Tensor


def test_tensors_are_found_in_dataclasses_and_batches() -> None:
    x = torch.ones(3, requires_grad=True)
    for wrap in (Output, lambda tensor: Data(x=tensor), lambda tensor: [{"a": (tensor,)}]):
        marks = Marks(HandClock())
        marks.open()
        out = x * 2
        marks.cover(wrap(out), A)
        out.sum().backward()
        assert marks.close()[0] == [OTHER, A, OTHER]


def test_marking_counts_its_own_time_and_tells_what_else_wants_to_know() -> None:
    marks = Marks(HandClock())
    seen: list[Label] = []
    marks.on_mark = lambda: seen.append(marks.current)
    marks.keeps_host = True
    marks.open(A)
    marks.push(B)
    marks.pop()
    marks.close()
    assert seen == [A, B, A, OTHER]
    assert len(marks.host_s) == 4
    assert marks.host_s == sorted(marks.host_s)
    assert 0 < marks.spent_s < 1


def test_leaves_have_no_node_to_cover() -> None:
    marks = Marks(HandClock())
    marks.open()
    leaf: Tensor = torch.ones(2, requires_grad=True)
    marks.cover([leaf, torch.ones(2)], A)
    (leaf * 2).sum().backward()
    assert marks.close()[0] == [OTHER]
