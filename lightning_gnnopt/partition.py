"""Cut a graph into parts for processes: ``python -m lightning_gnnopt.partition`` or ``gnnopt-partition``."""

from __future__ import annotations

from pathlib import Path

import hydra
import rich
from omegaconf import DictConfig

from lightning_gnnopt._cli import run
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.parallel import (
    PartData,
    PartitionDataModule,
    PartitionReport,
    find_exchanges,
    load_part,
    partition_graph,
    predict_bytes,
    read_info,
)
from lightning_gnnopt.train import build_model


def partition(config: DictConfig) -> PartitionReport:
    """Cut a graph, unless it is there already, and print what came out.

    Args:
        config: A composed config of ``conf/partition.yaml``.

    Returns:
        The report.

    Raises:
        ValueError: If what is in the folder is another graph, or a part refuses its arguments.
    """
    folder = Path(config.folder) / f"{config.num_parts}-parts"
    data = load_dataset(config.data.name, root=config.data.root, **config.data.options)
    if folder.exists():
        info = read_info(folder)
        if (info.num_nodes, info.num_edges) != (data.num_nodes, data.num_edges):
            raise ValueError(
                f"'{folder}' holds a graph of {info.num_nodes:,} nodes and {info.num_edges:,} edges, but"
                f" {config.data.name} has {data.num_nodes:,} and {data.num_edges:,}. HINT: choose another `folder`."
            )
        print(f"Found in {folder}; remove it to have it cut anew.")
    else:
        info = partition_graph(
            data, config.num_parts, folder=folder, method=config.method, objective=config.objective, seed=config.seed,
            max_bytes=config.max_bytes,
        )  # fmt: skip
        print(f"Written to {folder}.")
    report = PartitionReport(info)
    if config.get("model") is not None:
        model = build_model(config.model, PartitionDataModule(data, folder=config.folder))
        largest = max(range(info.num_parts), key=lambda rank: info.parts[rank]["inner"])
        batch = PartData.of(*load_part(folder, largest))
        sent = {name: predict_bytes(info, find_exchanges(model, batch, name), name) for name in config.policies}
        report = PartitionReport(info, sent)
    rich.print(report)
    return report


@hydra.main(version_base="1.3", config_path="pkg://lightning_gnnopt.conf", config_name="partition")
def _app(config: DictConfig) -> None:
    partition(config)


def main() -> None:
    """Run the command line."""
    run(_app)


if __name__ == "__main__":
    main()
