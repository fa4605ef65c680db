"""How much the benchmark of validation beside training measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AsyncScale:
    """How much is measured.

    Attributes:
        graphs: The graphs.
        stand_in_nodes: Nodes of the graph that is made where the files of one are missing.
        features: Features of them that are kept, so that a step is short and shares can be met closely.
        models: The models.
        samplings: ``"full"``: every batch is the whole graph. ``"sampled"``: neighbours.
        hidden: The models' width.
        fanouts: Fan-outs of sampled batches.
        batch_size: Their seeds.
        shares: Validation's shares of an epoch.
        epochs: Epochs of a run.
        epoch_s: Seconds of an epoch, validation included, at least.
        rounds: Rounds of each case.
        cold_cases: How many of the cases are also run without waiting for the process to be up, for each share.
        snapshot_width: Width of the large model's layers.
        snapshot_layers: How many layers it has.
        snapshots: Snapshots of it that count, per run.
        snapshot_steps: Its steps between two of them.
    """

    graphs: tuple[str, ...] = ("amazon-computers", "facebook-amherst41")
    stand_in_nodes: int = 3_000
    features: int = 64
    models: tuple[str, ...] = ("gcn", "gat")
    samplings: tuple[str, ...] = ("full", "sampled")
    hidden: int = 16
    fanouts: tuple[int, ...] = (10, 5)
    batch_size: int = 128
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    epochs: int = 8
    epoch_s: float = 1.0
    rounds: int = 1
    cold_cases: int = 1
    snapshot_width: int = 1_000
    snapshot_layers: int = 10
    snapshots: int = 8
    snapshot_steps: int = 15


FULL = AsyncScale()
QUICK = AsyncScale(
    graphs=("facebook-amherst41",),
    models=("gcn",),
    samplings=("full", "sampled"),
    shares=(0.3,),
    epochs=4,
    cold_cases=0,
    snapshots=3,
    snapshot_steps=8,
)
