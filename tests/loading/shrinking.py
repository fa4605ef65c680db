"""Loaders whose transforms leave out seeds by a rule, and what their batches are to be."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

from torch_geometric.data import Data

from lightning_gnnopt.loading import PrefetchLoader
from lightning_gnnopt.sampling import Subgraph

from .graphs import make_loader


def first_seeds(subgraph: Subgraph, num_seeds: int) -> Subgraph:
    """Keep the first seeds; the others become nodes of the first hop."""
    counts = list(subgraph.num_sampled_nodes or [])
    counts[1] += counts[0] - num_seeds
    counts[0] = num_seeds
    return replace(subgraph, num_sampled_nodes=counts, batch_size=num_seeds)


class Shrink:
    """Keeps as many seeds as a rule says, which is given the batch's seeds."""

    returns_seeds = True

    def __init__(self, rule: Callable[[list[int]], int]) -> None:
        self.rule = rule

    def __call__(self, subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        seeds = subgraph.n_id[: subgraph.batch_size].tolist()
        return first_seeds(subgraph, min(self.rule(seeds), len(seeds)))


def any_number(salt: int) -> Callable[[list[int]], int]:
    """A rule that follows no rule: from one to all."""
    return lambda seeds: 1 + zlib.crc32(bytes([*seeds, salt])) % len(seeds)


MIXED = any_number(34)  # nine batches in epoch 0 and eleven in epoch 1, of the five that are planned


def at_most(num_seeds: int) -> Callable[[list[int]], int]:
    return lambda seeds: num_seeds


def make_shrinking(rule: Callable[[list[int]], int] | None = None, **options: Any) -> PrefetchLoader:
    """A loader of five planned batches."""
    return make_loader(transforms=[Shrink(MIXED if rule is None else rule)], **options)


def inputs(batches: list[Data]) -> list[list[int]]:
    return [batch.input_id.tolist() for batch in batches]


def seen(batches: list[Data]) -> list[int]:
    return list(chain.from_iterable(inputs(batches)))


def expected_inputs(order: list[list[int]], rule: Callable[[list[int]], int], batch_size: int) -> list[list[int]]:
    """What an epoch's batches are to be, as one would do it by hand: a queue that is worked off round by round."""
    done: list[list[int]] = []
    while order:
        queue: list[int] = []
        for seeds in order:
            done.append(seeds[: rule(seeds)])
            queue += seeds[rule(seeds) :]
        order = [queue[i : i + batch_size] for i in range(0, len(queue), batch_size)]
    return done
