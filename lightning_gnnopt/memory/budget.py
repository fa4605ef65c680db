"""How much memory a run may use."""

from __future__ import annotations

import math
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import psutil
import torch

from lightning_gnnopt._units import format_bytes, parse_bytes

_ROOT = Path("/")
_DEVICE_RESERVE_BYTES = 512 * 2**20  # the context, workspaces of cuBLAS and cuDNN, buffers of NCCL
_DEVICE_RESERVE = 0.05
_HOST_RESERVE = 0.1
# In each version of control groups: limits, usage, and how its statistics call page cache that can be dropped.
_GROUP_FILES = {
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}


def read_budget(budget: str | float, device: torch.device | str, *, held_bytes: int = 0) -> int:
    """Read a memory budget: all bytes that a run may hold on its device, the model's own among them.

    ``"auto"`` is, on an accelerator, what the driver has free and what torch's allocator has reserved, less a reserve
    of 5 % of the device, 512 MiB at least. On CPU: what the machine has available, or what the control group (a
    container, a job of a scheduler) still allows if that is less, and `held_bytes`; less a reserve of 10 %.

    Args:
        budget: ``"auto"``; a number of bytes; a number with a unit, such as ``"6GiB"``; or a float above 0 and at most
            1, a share of the device's memory, or of what the control group allows.
        device: The device that trains.
        held_bytes: Bytes that the model holds already, on CPU a part of what ``"auto"`` may hand out.

    Returns:
        The budget in bytes.

    Raises:
        ValueError: If it is none of these, not positive, or more than the device has.

    Examples:
        >>> read_budget("1.5 MiB", "cpu"), read_budget(4096, "cpu")
        (1572864, 4096)
    """
    device = torch.device(device)
    if isinstance(budget, str) and budget.strip().lower() == "auto":
        return _auto(device, held_bytes)
    total_bytes = _total_bytes(device)
    if isinstance(budget, str):
        budget_bytes = _parsed(budget)
    elif isinstance(budget, bool) or not isinstance(budget, Real) or not math.isfinite(budget):
        raise _refused(budget)
    elif isinstance(budget, Integral) or budget > 1:
        if budget != int(budget):
            raise ValueError(
                f"`budget` must be a share of at most 1.0 or a whole number of bytes, but got {budget!r}."
                " HINT: 0.9 for 90 % of the device, or '6GiB'."
            )
        budget_bytes = int(budget)
    elif budget > 0:
        return max(int(float(budget) * total_bytes), 1)
    else:
        raise _not_positive(budget)
    if budget_bytes <= 0:
        raise _not_positive(budget)
    if budget_bytes > total_bytes:
        raise ValueError(
            f"`budget` must be at most the {total_bytes:,} bytes ({format_bytes(total_bytes)}) of {device}, but got"
            f" {budget!r}, {budget_bytes:,} bytes. HINT: 'auto' takes what is free, 0.9 takes 90 % of the device."
        )
    return budget_bytes


def _parsed(budget: str) -> int:
    if budget.strip().startswith("-"):
        raise _not_positive(budget)
    try:
        return parse_bytes(budget, name="budget")
    except ValueError:
        raise _refused(budget) from None


def _auto(device: torch.device, held_bytes: int) -> int:
    module = _device_module(device)
    if module is None:
        available_bytes = psutil.virtual_memory().available
        available_bytes = min([available_bytes, *(limit - used for limit, used in _group_limits())])
        usable_bytes = max(available_bytes, 0) + held_bytes
        reserve_bytes = int(_HOST_RESERVE * usable_bytes)
    else:
        free_bytes, total_bytes = module.mem_get_info(device)
        usable_bytes = free_bytes + module.memory_reserved(device)
        if hasattr(module, "get_per_process_memory_fraction"):
            usable_bytes = min(usable_bytes, int(module.get_per_process_memory_fraction(device) * total_bytes))
        reserve_bytes = max(_DEVICE_RESERVE_BYTES, int(_DEVICE_RESERVE * total_bytes))
    if usable_bytes <= reserve_bytes:
        raise ValueError(
            f"`budget='auto'` must find memory to use on {device}, but {usable_bytes:,} bytes can be had and"
            f" {reserve_bytes:,} are kept in reserve. HINT: end what else runs there, or give a `budget` in bytes."
        )
    return int(usable_bytes - reserve_bytes)


def _total_bytes(device: torch.device) -> int:
    module = _device_module(device)
    if module is not None:
        return int(module.mem_get_info(device)[1])
    return int(min([psutil.virtual_memory().total, *(limit for limit, _ in _group_limits())]))


def _device_module(device: torch.device) -> Any:
    """The module that knows the device's memory; None where it is the host's (CPU, MPS)."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return module if hasattr(module, "mem_get_info") else None


def _group_limits() -> list[tuple[int, int]]:
    """Limit and usage of this process's control group and of those around it, as far as they have a limit."""
    try:
        lines = (_ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    limits: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits_above(_ROOT / "sys/fs/cgroup", path, version=2)
        elif "memory" in controllers.split(","):
            limits += _limits_above(_ROOT / "sys/fs/cgroup/memory", path, version=1)
    return limits


def _limits_above(mount: Path, path: str, *, version: int) -> list[tuple[int, int]]:
    limit_names, usage_name, cache_name = _GROUP_FILES[version]
    folder = mount / path.lstrip("/")
    limits: list[tuple[int, int]] = []
    # A container sees its own group as the mount's root, whatever path /proc tells; folders that are not there pass.
    for group in (folder, *folder.parents):
        if not group.is_relative_to(mount):
            break
        found = [limit for limit in (_number(group / name) for name in limit_names) if limit is not None]
        usage = _number(group / usage_name)
        if found and usage is not None:
            limits.append((min(found), max(usage - _cache_bytes(group / "memory.stat", cache_name), 0)))
    return limits


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max": no limit


def _cache_bytes(file: Path, name: str) -> int:
    """Page cache that the kernel drops before a limit hurts."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _refused(budget: object) -> ValueError:
    return ValueError(
        f"`budget` must be 'auto', a size such as '6GiB', a number of bytes or a share of the device such as 0.9, but"
        f" got {budget!r}. HINT: leave it at 'auto' to use what is free."
    )


def _not_positive(budget: object) -> ValueError:
    return ValueError(
        f"`budget` must be more than 0 bytes, but got {budget!r}. HINT: 'auto', '6GiB', or 0.9 for 90 % of the device."
    )
