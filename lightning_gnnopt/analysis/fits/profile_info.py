"""What a profile says of where it was taken."""

from __future__ import annotations

from typing import Any

import torch

from lightning_gnnopt._machine import machine, versions


def surroundings(device: torch.device) -> dict[str, Any]:
    """Describe the device, the machine and the versions, for `Records.info`."""
    found = machine()
    environment = {name: str(value) for name, value in (found | versions()).items() if value is not None}
    return {"device": device_name(device), "environment": environment, "cores": found["cores"]}


def device_name(device: torch.device) -> str:
    """Name a device: ``"cpu"``, or what it calls itself."""
    if device.type == "cpu":
        return "cpu"
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else str(device)
