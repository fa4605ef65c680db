"""A caching allocator that counts, for tests without a GPU."""

from __future__ import annotations

import torch


class FakeCuda:
    """Counts like `torch.cuda`; has `free_bytes` and `total_bytes`."""

    def __init__(self) -> None:
        self.live = self.peak = self.reserved = self.reserved_peak = 0
        self.free_bytes, self.total_bytes = 0, 0

    def allocate(self, num_bytes: int) -> None:
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        self.reserved = max(self.reserved, self.live)
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def release(self, num_bytes: int) -> None:
        self.live -= num_bytes

    def empty_cache(self) -> None:
        self.reserved = self.live

    def current_device(self) -> int:
        return 0

    def memory_allocated(self, device: torch.device) -> int:
        return self.live

    def memory_reserved(self, device: torch.device) -> int:
        return self.reserved

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.peak

    def max_memory_reserved(self, device: torch.device) -> int:
        return self.reserved_peak

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak, self.reserved_peak = self.live, self.reserved

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free_bytes, self.total_bytes
