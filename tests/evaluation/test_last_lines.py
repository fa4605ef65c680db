"""The end of what a process printed, however it was cut on its way."""

import os
import threading
import time

import pytest

from lightning_gnnopt.evaluation.last_lines import LastLines, pass_on

STACK = "Stack (most recent call first):\n" + "".join(f'  File "é/{i}.py", line {i} in f{i}\n' for i in range(40))


@pytest.mark.parametrize("length", [1, 7, 100_000])
def test_a_text_in_parts_is_the_text(length: int) -> None:
    lines = LastLines(60)
    for start in range(0, len(STACK), length):
        lines.add(STACK[start : start + length])
    assert lines.text() == STACK


@pytest.mark.parametrize("length", [1, 100_000])
def test_the_last_lines_are_kept_and_one_without_an_end_is_one(length: int) -> None:
    lines = LastLines(2)
    text = "a\n\nb\nrest"
    for start in range(0, len(text), length):
        lines.add(text[start : start + length])
    assert lines.text() == "b\nrest"
    lines.clear()
    assert lines.text() == ""
    lines.add("new\n")
    assert lines.text() == "new\n"


def test_a_letter_cut_in_two_is_passed_on_whole(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LastLines(60)
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as pipe:
        thread = threading.Thread(target=pass_on, args=(pipe, lines))
        thread.start()
        for byte in STACK.encode():
            os.write(theirs, bytes([byte]))
        os.close(theirs)
        thread.join(30)
    assert lines.text() == STACK
    assert capsys.readouterr().err == STACK


def test_waiting_ends_when_nothing_more_arrives() -> None:
    lines = LastLines(60)

    def say() -> None:
        for line in STACK.splitlines(keepends=True):
            time.sleep(0.01)
            lines.add(line)

    thread = threading.Thread(target=say)
    thread.start()
    lines.wait(quiet_s=2.0, timeout_s=60.0)
    assert lines.text() == STACK
    thread.join()


def test_waiting_for_nothing_ends_as_well() -> None:
    start_s = time.monotonic()
    LastLines(60).wait(quiet_s=0.01, timeout_s=0.05)
    assert time.monotonic() - start_s >= 0.05
