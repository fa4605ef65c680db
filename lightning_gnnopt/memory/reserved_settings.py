"""How torch's caching allocator for CUDA is set up."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_gnnopt.memory.cuda_blocks import LARGE_SEGMENT

_MIB = 2**20
_INTERVALS = 16  # of powers of two that have their own number of steps: below 2 MiB to 32 GiB and more
_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the first one that is set counts
_PAIR = re.compile(r"([^,:\[\]]+):(\[[^\]]*\]?|[^,]*)")


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """What of the allocator's settings the simulation knows; the defaults are torch's.

    Attributes:
        backend: ``"native"``, or ``"cudaMallocAsync"``, which has no segments of torch's.
        expandable_segments: Whether segments expand.
        max_split_bytes: From which size on free blocks are not split; None splits all.
        roundup_power2_divisions: Steps between powers of two to which requests are rounded up, below 2 MiB, from there
            to 4 MiB, and so on, the last one for all that is larger.

    Examples:
        >>> AllocatorSettings.parse("expandable_segments:True, max_split_size_mb:128").max_split_bytes
        134217728
        >>> AllocatorSettings.parse("roundup_power2_divisions:[4:2,16:8,>:1]").roundup_power2_divisions[:6]
        (2, 2, 2, 1, 8, 1)
    """

    backend: str = "native"
    expandable_segments: bool = False
    max_split_bytes: int | None = None
    roundup_power2_divisions: tuple[int, ...] = (1,)

    @property
    def options(self) -> dict[str, Any]:
        """As arguments of :func:`~lightning_gnnopt.memory.cuda_allocator.simulate`."""
        return {
            "expandable_segments": self.expandable_segments,
            "max_split_bytes": self.max_split_bytes,
            "roundup_power2_divisions": self.roundup_power2_divisions,
        }

    @classmethod
    def read(cls) -> AllocatorSettings:
        """Read the environment, and what torch has been told since the process began, which counts more."""
        configured = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
        told = getattr(torch._C, "_accelerator_getAllocatorSettings", str)()  # from torch 2.9 on
        return cls.parse(f"{configured},{told}")

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """Read ``key:value`` pairs as torch does, later ones first.

        Keys that the simulation does not know and values that torch would refuse are passed over.
        """
        known: dict[str, Any] = {}
        for key, value in _PAIR.findall("".join(text.split())):
            if key == "backend":
                known["backend"] = value
            elif key == "expandable_segments":
                # Elsewhere torch warns and goes on without.
                known["expandable_segments"] = value == "True" and sys.platform == "linux"
            elif key == "max_split_size_mb":
                size = _number(value) * _MIB
                if size > LARGE_SEGMENT:
                    known["max_split_bytes"] = size
            elif key == "roundup_power2_divisions":
                divisions = _divisions(value)
                if divisions:
                    known["roundup_power2_divisions"] = divisions
        return cls(**known)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _divisions(value: str) -> tuple[int, ...]:
    """Read one number of steps, or ``[MiB:steps, ..., >:steps]``; nothing if torch would refuse it.

    The first pair also counts for all that is smaller, ``>`` for all that is larger than the pair before, and what lies
    between two pairs has no steps.
    """
    if not value.startswith("["):
        return (_number(value),) if _is_power(_number(value)) else ()
    steps: list[int] = [1] * _INTERVALS
    last: int | None = None
    for start, number in _pairs(value):
        if not _is_power(_number(number)):
            return ()
        if start == ">":
            begin, end = 0 if last is None else last + 1, _INTERVALS
        elif _is_power(_number(start)):
            place = min(_number(start).bit_length() - 1, _INTERVALS - 1)
            begin, end, last = (0 if last is None else place), place + 1, place
        else:
            return ()
        steps[begin:end] = [_number(number)] * (end - begin)
    return tuple(steps)


def _pairs(value: str) -> Sequence[tuple[str, str]]:
    return re.findall(r"([^,:\[\]]+):([^,\[\]]*)", value)
