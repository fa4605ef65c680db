"""What is fetched of the halo: all of it, some of it, in fewer bits, or what it was a step ago."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.parallel.quantization import BITS


@dataclass(frozen=True)
class Exact:
    """All rows as they are: the gradients are those of one process."""

    name = "exact"


@dataclass(frozen=True)
class BNS:
    """Boundary node sampling (Wan et al., MLSys 2022): in each training step, a random share of the rows.

    Of what each rank sends to each other one, ``max(1, round(p * rows))`` rows are drawn without replacement, for all
    layers and the backward pass of the step. Both sides draw the same from the same key, so no ids travel. Where a
    layer's aggregate is linear in its sources (sums and means without attention), rows are divided by the share that
    was drawn, degrees stay those of the graph, and the aggregate is right on average. Elsewhere the edges of the other
    rows are left out. Evaluation fetches all rows.

    Args:
        p: The share, from 0 (parts on their own) to 1 (exact), or a function of the number of the step.
        seed: Of what is drawn.

    Raises:
        ValueError: If `p` is out of range.

    Examples:
        >>> BNS(0.1).share(0)
        0.1
    """

    p: float | Callable[[int], float] = 0.1
    seed: int = 0
    name = "bns"

    def __post_init__(self) -> None:
        if not callable(self.p):
            self.share(0)

    def share(self, step: int) -> float:
        """The share of a step."""
        p = self.p(step) if callable(self.p) else self.p
        if not 0 <= p <= 1:
            raise ValueError(f"`p` must be from 0 to 1, but got {p}. HINT: 0.1 fetches a tenth of the boundary.")
        return float(p)


@dataclass(frozen=True)
class Quantized:
    """Rows and gradients in few bits, rounded at random so that they are right on average (AdaQP, MLSys 2023).

    Only in training; evaluation fetches rows as they are.

    Args:
        bits: 2, 4 or 8 for each value; a row takes 4 bytes more.
        seed: Of the rounding.

    Raises:
        ValueError: If there is no such number of bits.
    """

    bits: int = 8
    seed: int = 0
    name = "quantized"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"`bits` must be one of {BITS}, but got {self.bits!r}. HINT: 8 is nearest to exact.")


@dataclass(frozen=True)
class Stale:
    """Rows, and gradients, of some steps ago (PipeGCN, ICLR 2022): nothing waits for what is on its way.

    In the first steps, for which there are none yet, rows are fetched and waited for. Evaluation fetches rows, too.
    Each layer keeps a copy of its halo for each step of delay: more memory, not less.

    Args:
        delay: How many steps, at least 1.
        smooth: Use ``smooth * average + (1 - smooth) * rows`` with the average so far; 0 for the rows.

    Raises:
        ValueError: If an argument is out of range.
    """

    delay: int = 1
    smooth: float = 0.0
    name = "stale"

    def __post_init__(self) -> None:
        if self.delay < 1:
            raise ValueError(f"`delay` must be at least 1, but got {self.delay}. HINT: `Exact()` has none.")
        if not 0 <= self.smooth < 1:
            raise ValueError(f"`smooth` must be in [0, 1), but got {self.smooth}. HINT: 0.95 is PipeGCN's.")


@dataclass(frozen=True)
class SAR:
    """Sequential aggregation and rematerialization (Mostafa, MLSys 2022): the halo of one rank after the other's.

    Rows of one rank at a time are fetched, aggregated and let go; in the backward pass they are fetched and aggregated
    again. So no more of the halo is there than what ``1 + prefetch`` ranks send, and no messages are kept: gradients
    are exact, rows travel twice, and those of attention, whose softmax goes over all in-edges, more often. For
    convolutions that aggregate by sum, mean, maximum or minimum. Evaluation goes one after the other as well.

    Args:
        prefetch: Of how many further ranks rows are on their way while those of one are aggregated.

    Raises:
        ValueError: If `prefetch` is negative.
    """

    prefetch: int = 1
    name = "sar"

    def __post_init__(self) -> None:
        if self.prefetch < 0:
            raise ValueError(f"`prefetch` must be at least 0, but got {self.prefetch}. HINT: 0 takes least memory.")


@dataclass(frozen=True)
class Columns:
    """Tensor parallelism (NeutronTP, PVLDB 2024): each rank passes messages of some columns of all nodes.

    Before messages, rows of a rank's nodes are turned into columns of all nodes, and back after them: what travels
    depends on the nodes and not on the halo, so that it is less where most nodes are in some halo, and all ranks have
    equal work. Gradients are exact. Each rank has all edges. For convolutions that treat columns alike (SAGE, GCN, GIN
    and the like, edges weighted by constants); others, such as attention, fetch their halo.
    """

    name = "columns"


Policy = Exact | BNS | Quantized | Stale | SAR | Columns
NAMED: dict[str, Callable[[], Policy]] = {
    "exact": Exact, "bns": BNS, "quantized": Quantized, "stale": Stale, "sar": SAR, "columns": Columns,
}  # fmt: skip


@dataclass(frozen=True)
class Policies:
    """One of each kind at most, put together.

    Attributes:
        sampled: Which rows are fetched.
        quantized: In how many bits.
        stale: Of which step.
        sequential: Whether of one rank after the other.
        columns: Whether columns of all nodes take their place.
    """

    sampled: BNS | None = None
    quantized: Quantized | None = None
    stale: Stale | None = None
    sequential: SAR | None = None
    columns: Columns | None = None

    @classmethod
    def of(cls, given: str | Policy | Sequence[str | Policy]) -> Policies:
        """Read what a user gives.

        Args:
            given: A policy or its name, or several that are to be combined.

        Raises:
            ValueError: If a name is unknown, a kind is given twice, or two cannot be combined.

        Examples:
            >>> found = Policies.of([BNS(0.5), "quantized"])
            >>> found.sampled, found.quantized, found.stale
            (BNS(p=0.5, seed=0), Quantized(bits=8, seed=0), None)
        """
        found: dict[str, Policy] = {}
        for item in [given] if isinstance(given, str | Policy) else given:
            if isinstance(item, str):
                if item not in NAMED:
                    raise ValueError(unknown_name("policy", item, NAMED))
                item = NAMED[item]()
            if not isinstance(item, Policy):
                raise ValueError(
                    f"A policy must be one of {sorted(NAMED)} or an object such as `BNS(0.1)`, but got {item!r}."
                    " HINT: `from lightning_gnnopt.parallel import BNS`."
                )
            if item.name in found:
                raise ValueError(f"There are two policies of the kind {item.name!r}. HINT: leave one out.")
            found[item.name] = item
        for other, why in (("bns", "are not those that are drawn now"), ("sar", "would have to be kept")):
            if {"stale", other} <= found.keys():
                raise ValueError(
                    f"`Stale` cannot be combined with `{other.upper()}`: the rows of a step ago {why}."
                    " HINT: leave one out; `Quantized` goes with either."
                )
        if "columns" in found and len(found.keys() - {"exact"}) > 1:
            raise ValueError("`Columns` cannot be combined with other policies: there is no halo. HINT: leave one out.")
        return cls(*(found.get(name) for name in ("bns", "quantized", "stale", "sar", "columns")))  # type: ignore[arg-type]
