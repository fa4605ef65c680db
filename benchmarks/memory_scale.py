"""How much the benchmarks of memory control measure."""

from __future__ import annotations

from dataclasses import dataclass

MODELS = ("gcn", "sage", "gat", "ggnn", "gaan")
SAMPLINGS = ("neighbor", "cluster")


@dataclass(frozen=True, kw_only=True)
class MemoryScale:
    """How much is measured.

    Attributes:
        graphs: Graphs of the exact predictions.
        stand_in_nodes: Nodes of the graph that is made where the files of one are missing.
        models: Models of the exact predictions.
        hidden: Their width.
        fanouts: Fan-outs of neighbour batches.
        batch_size: Seeds of neighbour batches.
        parts: Clusters that a graph is cut into; two of them make a batch.
        exact_batches: Training batches per epoch of each of those runs, at most; and validation batches.
        exact_epochs: Epochs of each.
        budget_graphs: Graphs of the runs under a budget, of which a few features are kept.
        budget_models: Their models.
        budget_shares: Budgets, as shares of the largest peak without control.
        budget_batches: Training batches of all runs under a budget, together.
        prune_edges: Edges of the batch that is pruned.
        prune_rounds: How often each of the short times is taken.
        share_rounds: Rounds of the epochs with and without control.
        share_epochs: Epochs of each that count.
        share_nodes: Nodes of their graph.
        accuracy_graphs: Graphs of the comparison of scores.
        accuracy_seeds: Runs on each.
        accuracy_steps: Training steps of each.
        published_draws: Draws of the rows that predictors are fitted to.
    """

    graphs: tuple[str, ...] = ("cora", "amazon-photo", "facebook-amherst41", "heco-dblp-apcpa")
    stand_in_nodes: int = 3_000
    models: tuple[str, ...] = MODELS
    hidden: int = 64
    fanouts: tuple[int, ...] = (10, 5)
    batch_size: int = 64
    parts: int = 48
    exact_batches: int = 20
    exact_epochs: int = 1
    budget_graphs: tuple[str, ...] = ("amazon-photo", "facebook-amherst41")
    budget_models: tuple[str, ...] = ("gcn", "sage", "gat")
    budget_shares: tuple[float, ...] = (0.5, 0.7, 0.9)
    budget_batches: int = 10_000
    prune_edges: int = 100_000
    prune_rounds: int = 100
    share_rounds: int = 6
    share_epochs: int = 4
    share_nodes: int = 20_000
    accuracy_graphs: tuple[str, ...] = (
        "cora",
        "amazon-photo",
        "facebook-amherst41",
        "heco-acm-psp",
        "heco-dblp-apcpa",
    )
    accuracy_seeds: int = 2
    accuracy_steps: int = 120
    published_draws: int = 100


FULL = MemoryScale()
QUICK = MemoryScale(
    graphs=("cora", "facebook-amherst41"),
    models=("sage", "gat"),
    exact_batches=8,
    budget_graphs=("facebook-amherst41",),
    budget_models=("sage",),
    budget_batches=400,
    prune_rounds=20,
    share_rounds=2,
    share_epochs=2,
    share_nodes=10_000,
    accuracy_graphs=("facebook-amherst41",),
    accuracy_seeds=1,
    accuracy_steps=40,
    published_draws=50,
)
