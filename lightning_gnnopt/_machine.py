"""What a measurement ran on and with, without a word on whose machine it was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

import lightning_gnnopt

_CPUINFO = Path("/proc/cpuinfo")
_PACKAGES = ("torch", "torch_geometric", "lightning", "numba", "numpy")


def machine() -> dict[str, str | int | float | None]:
    """Describe the machine: nothing that names it, its user or a folder.

    Returns:
        ``processor`` (model), ``cores`` that this process may use, ``memory_gib``, ``os``, ``python``,
        ``torch_threads`` (within one operator of torch), and ``device``, the CUDA device's name or None.
    """
    release = re.match(r"[\d.]*\d", platform.release())  # what follows the number may be anything
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {release[0] if release else ''}".strip(),
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(peers: Iterable[str] = ()) -> dict[str, str]:
    """List the versions of this package and of what it runs on.

    Args:
        peers: Further packages by their names on PyPI; those not installed are left out.

    Returns:
        Version by name.
    """
    found = {"lightning_gnnopt": lightning_gnnopt.__version__}
    found |= {name: version(name) for name in _PACKAGES}
    found["python"] = platform.python_version()
    for name in peers:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def other_cpu_s() -> float:
    """Read the processor time that everything but us has used, in seconds since the machine started.

    Ours are this process and the children that it has waited for.
    """
    times, own = psutil.cpu_times()._asdict(), os.times()
    # The time of guests is part of `user` and `nice` already; stolen time went to other machines on the same host.
    busy_s = sum(times.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
    return float(busy_s - own.user - own.system - own.children_user - own.children_system)


def _processor() -> str:
    if _CPUINFO.exists():
        model = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
        if model:
            return model[1].strip()
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()
