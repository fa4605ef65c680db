from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_gnnopt.evaluation.weights import load_weights, read_weights, weights_of


class Own:
    """A class of the user's."""

    def __init__(self, value: int) -> None:
        self.value = value


def test_what_a_checkpoint_has_takes_the_place_of_the_modules_own() -> None:
    net = nn.Linear(2, 1)
    net.register_buffer("mask", torch.ones(1), persistent=False)
    weights = weights_of(net, saved={"weight": torch.full((1, 2), 5.0), "another": torch.zeros(1)})
    assert list(weights["state_dict"]) == ["weight", "bias"]
    assert torch.equal(weights["state_dict"]["weight"], torch.full((1, 2), 5.0))
    assert torch.equal(weights["state_dict"]["bias"], net.bias)
    assert list(weights["buffers"]) == ["mask"]
    assert not torch.equal(net.weight, torch.full((1, 2), 5.0))


def test_names_that_are_missing_are_refused_unless_the_module_allows_them() -> None:
    net = nn.Linear(2, 1)
    weights = {"state_dict": {"bias": torch.tensor([7.0])}, "buffers": {}}
    with pytest.raises(RuntimeError, match="weight"):
        load_weights(net, weights)
    net.strict_loading = False  # type: ignore[assignment]
    load_weights(net, weights)
    assert net.bias.item() == 7.0


def test_a_file_may_hold_states_of_other_classes(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "buffers": {}}, tmp_path / "tensors")
    torch.save({"state_dict": {"w": torch.ones(2), "_extra_state": Own(3)}, "buffers": {}}, tmp_path / "own")
    assert torch.equal(read_weights(tmp_path / "tensors")["state_dict"]["w"], torch.ones(2))
    assert read_weights(tmp_path / "own")["state_dict"]["_extra_state"].value == 3
