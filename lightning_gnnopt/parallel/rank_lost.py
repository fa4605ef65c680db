"""The error of a rank that waits for others in vain."""

from __future__ import annotations

import re

from typing_extensions import override


class RankLost(RuntimeError):  # noqa: N818 (says what has happened, like `KeyboardInterrupt`)
    """Another rank has ended, or did not take part in an exchange in time.

    It cannot be told which one: what a rank waits for may be late because another one waits itself. The run cannot go
    on; a new one goes on from the last checkpoint, with any number of processes.

    Args:
        rank: The rank that waited.
        kind: What for: ``"forward"``, ``"backward"``, ``"sum"``, ...; ``"meeting"`` before the first one.
        waited_s: How long.
        reason: What the process group says.

    Examples:
        >>> print(RankLost(0, "backward", 60.0, "Operation timed out!"))  # doctest: +NORMALIZE_WHITESPACE
        Rank 0 waited 60.0 s for the others in an exchange of the kind 'backward', in vain: Operation timed out.
        HINT: the rank that has ended or hangs says why in its own output; if one is only slow, raise `timeout`.
    """

    def __init__(self, rank: int, kind: str, waited_s: float, reason: str) -> None:
        super().__init__(rank, kind, waited_s, reason)
        self.rank, self.kind, self.waited_s, self.reason = rank, kind, waited_s, reason

    @classmethod
    def after(cls, error: BaseException, *, rank: int, kind: str, waited_s: float) -> RankLost:
        """Put an error of a process group into words.

        Args:
            error: What it has raised.
            rank: The rank that waited.
            kind: What for.
            waited_s: How long.
        """
        line = (str(error).splitlines() or [""])[0]
        without_place = re.sub(r"^\[[^\]]*\.\w+:\d+\] ", "", line)  # gloo's source file
        return cls(rank, kind, waited_s, without_place.split(". ")[0] or type(error).__name__)

    @override
    def __str__(self) -> str:
        return (
            f"Rank {self.rank} waited {self.waited_s:.1f} s for the others in an exchange of the kind {self.kind!r},"
            f" in vain: {self.reason.rstrip('.!')}. HINT: the rank that has ended or hangs says why in its own output;"
            " if one is only slow, raise `timeout`."
        )
