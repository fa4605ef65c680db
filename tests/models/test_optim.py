from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lightning_gnnopt.models.optim import OPTIMIZERS, SCHEDULERS, make_factory, to_plain


@pytest.mark.parametrize("name", ["AdamW", "adamw", "ADAMW"])
def test_the_name_is_found_in_any_case(name: str) -> None:
    optimizer = make_factory("optimizer", {"name": name, "lr": 0.5, "weight_decay": 0.25}, OPTIMIZERS)([torch.zeros(1)])
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 0.25)


def test_every_class_of_torch_is_known_and_no_base_class() -> None:
    assert {"Adam", "SGD", "LBFGS", "RMSprop"} < OPTIMIZERS.keys()
    assert {"CosineAnnealingLR", "ReduceLROnPlateau", "StepLR", "OneCycleLR"} < SCHEDULERS.keys()
    assert not {"Optimizer", "LRScheduler", "_LRScheduler"} & (OPTIMIZERS.keys() | SCHEDULERS.keys())


def test_a_callable_stays_as_it_is() -> None:
    factory = functools.partial(torch.optim.SGD, lr=0.1)
    assert make_factory("optimizer", factory, OPTIMIZERS) is factory


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "Adamm"}, "Unknown optimizer 'Adamm'. Did you mean 'Adam'? Known: ASGD, Adadelta, Adafactor,"),
        ({"lr": 0.1}, "`optimizer` must say its class under the key `name`, but has only ['lr']."),
        ({"name": "sgd", "momentm": 0.9}, "Unknown argument of `SGD` 'momentm'. Did you mean 'momentum'? Known: "),
        (
            "adam",
            "`optimizer` must be a mapping with a `name`, or a callable, but got 'adam'."
            " HINT: for instance `optimizer={'name': 'adam'}`.",
        ),
    ],
)
def test_bad_optimizers_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"optimizer|argument") as error:
        make_factory("optimizer", spec, OPTIMIZERS)
    assert str(error.value).startswith(message)


def test_bad_schedulers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheduler 'CosineAnealingLR'\. Did you mean 'CosineAnnealingLR'\?"):
        make_factory("scheduler", {"name": "CosineAnealingLR"}, SCHEDULERS)
    message = r"`scheduler` needs `T_max` to build `CosineAnnealingLR`, but has only \['eta_min'\]\."
    with pytest.raises(ValueError, match=message):
        make_factory("scheduler", {"name": "CosineAnnealingLR", "eta_min": 0.1}, SCHEDULERS)


def test_to_plain_turns_hydras_containers_into_pythons() -> None:
    config = OmegaConf.create({"name": "Adam", "betas": [0.5, 0.9], "nested": {"a": None}})
    plain = to_plain(config)
    assert plain == {"name": "Adam", "betas": [0.5, 0.9], "nested": {"a": None}}
    assert [type(plain), type(plain["betas"]), type(plain["nested"])] == [dict, list, dict]
