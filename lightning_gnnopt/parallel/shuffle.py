"""Questions sent to the ranks that can answer them, and the answers brought back in the order of the questions."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_gnnopt.parallel.channel import Channel

_GAVE_UP = -1  # in the place of a count


class Shuffle:
    """One round of questions and answers between all ranks, each of which must make one and take the same steps.

    Args:
        channel: Connects the ranks.
        owner: The rank that each of this rank's questions goes to, shape ``(k,)``; none, or one many times.
        header: Some words for every rank, int64 of shape ``(h,)``, with the same ``h`` on all ranks.
        kind: What it is for, in the channel's traffic.

    Attributes:
        send_counts: Questions to each rank.
        recv_counts: Questions from each rank.
        headers: The header of each rank, shape ``(P, h)``.

    Raises:
        RuntimeError: If a rank has given up, see :meth:`or_give_up`.
    """

    def __init__(self, channel: Channel, owner: NDArray[np.integer], header: Sequence[int] = (), *, kind: str) -> None:
        self._channel, self._kind = channel, kind
        self._order = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=channel.size)
        self.send_counts: list[int] = counts.tolist()
        received = _tell_all(channel, counts, header, kind)
        self.recv_counts: list[int] = received[:, 0].tolist()
        self.headers = received[:, 1:]
        if _GAVE_UP in self.recv_counts:
            raise RuntimeError(
                f"Rank {self.recv_counts.index(_GAVE_UP)} has given up before this exchange of kind {kind!r}."
                " HINT: its own error says why."
            )

    @staticmethod
    @contextmanager
    def or_give_up(channel: Channel, num_header: int = 0, *, kind: str) -> Iterator[None]:
        """Tell the ranks that wait for this one if it raises a `ValueError` and so makes no shuffle: theirs raise, too.

        Args:
            channel: Connects the ranks.
            num_header: The words of their headers.
            kind: What theirs are for.
        """
        try:
            yield
        except ValueError as error:
            try:
                _tell_all(channel, np.full(channel.size, _GAVE_UP), [0] * num_header, kind)
            except Exception as lost:
                raise error from lost  # that the others are gone is the lesser news
            raise

    def ask(self, questions: NDArray[Any]) -> NDArray[Any]:
        """Send the questions.

        Args:
            questions: Shape ``(k, ...)``.

        Returns:
            Those of all ranks to this one, shape ``(sum(recv_counts), ...)``: of rank 0 first, of each in its order.
        """
        return self._exchange(questions[self._order], self.send_counts, self.recv_counts)

    def answer(self, answers: NDArray[Any]) -> NDArray[Any]:
        """Send an answer to each question.

        Args:
            answers: Shape ``(sum(recv_counts), ...)``, in the order of what :meth:`ask` has returned.

        Returns:
            Those to this rank's questions, shape ``(k, ...)``, in the questions' order.
        """
        received = self._exchange(answers, self.recv_counts, self.send_counts)
        in_order = np.empty_like(received)
        in_order[self._order] = received
        return in_order

    def answer_many(self, counts: NDArray[np.integer], rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Send any number of rows as the answer to each question.

        Args:
            counts: Rows for each question, shape ``(sum(recv_counts),)``.
            rows: The rows of the first question, of the second, ...: shape ``(sum(counts), ...)``.

        Returns:
            Where the rows of each of this rank's questions begin and end, shape ``(k + 1,)``; and the rows.
        """
        mine = self.answer(counts)
        there = self._per_rank(counts, self.recv_counts)
        here = self._per_rank(mine[self._order], self.send_counts)
        received = self._exchange(rows, there, here)
        ends = np.cumsum(mine, dtype=np.int64)
        colptr = np.concatenate([[0], ends])
        sizes = mine[self._order]
        begin = np.empty(len(mine), np.int64)  # of each question's rows in what was received
        begin[self._order] = np.cumsum(sizes, dtype=np.int64) - sizes
        places = np.arange(colptr[-1]) + np.repeat(begin - colptr[:-1], mine)
        return colptr, received[places]

    def _exchange(self, rows: NDArray[Any], send_counts: list[int], recv_counts: list[int]) -> NDArray[Any]:
        tensor = torch.from_numpy(np.ascontiguousarray(rows))
        received: NDArray[Any] = self._channel.start(tensor, send_counts, recv_counts, kind=self._kind)().numpy()
        return received

    @staticmethod
    def _per_rank(counts: NDArray[np.integer], questions: list[int]) -> list[int]:
        """Add up the rows of each rank's questions."""
        totals = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        per_rank: list[int] = np.diff(totals[np.concatenate([[0], np.cumsum(questions)])]).tolist()
        return per_rank


def check_agreed(channel: Channel, options: object, *, what: str, kind: str) -> None:
    """Make sure that all ranks have the same options.

    Args:
        channel: Connects the ranks, all of which must call it.
        options: Their ``repr`` is compared.
        what: Which options they are.
        kind: What it is for, in the channel's traffic.

    Raises:
        RuntimeError: If another rank has other ones.
    """
    mine = zlib.crc32(repr(options).encode())
    others = np.flatnonzero(_exchange_words(channel, np.full((channel.size, 1), mine), kind)[:, 0] != mine)
    if len(others):
        raise RuntimeError(
            f"All ranks must have the same {what}, but those of rank {others[0]} are not those of rank {channel.rank},"
            f" {options!r}. HINT: make them alike on all ranks; only rows and seeds may differ."
        )


def _tell_all(channel: Channel, counts: NDArray[np.int64], header: Sequence[int], kind: str) -> NDArray[np.int64]:
    """Send each rank its count, and all of them the header; return what they have sent, shape ``(P, 1 + h)``."""
    words = np.empty((channel.size, 1 + len(header)), np.int64)
    words[:, 0], words[:, 1:] = counts, header
    return _exchange_words(channel, words, kind)


def _exchange_words(channel: Channel, words: NDArray[np.int64], kind: str) -> NDArray[np.int64]:
    one_each = [1] * channel.size
    received: NDArray[np.int64] = channel.start(torch.from_numpy(words), one_each, one_each, kind=kind)().numpy()
    return received
