"""What a profile says of where it was taken."""

from __future__ import annotations

import torch

from lightning_gnnopt._machine import machine, versions


def environment() -> dict[str, str]:
    """Describe the machine and the versions, by name."""
    found = {name: str(value) for name, value in machine().items() if value is not None}
    return found | {name: str(value) for name, value in versions().items()}


def device_name(device: torch.device) -> str:
    """Name a device: ``"cpu"``, or what it calls itself."""
    if device.type == "cpu":
        return "cpu"
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else str(device)
