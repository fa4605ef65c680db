"""Where the time and the memory of four models on seven graphs go: ``python -m lightning_gnnopt.study -m``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from lightning_gnnopt._cli import run
from lightning_gnnopt.analysis.study.collect import collect
from lightning_gnnopt.analysis.study.job import run_job


def study(config: DictConfig) -> None:
    """Run one job of the study, or collect what an earlier run has left.

    Args:
        config: A composed config of ``conf/study.yaml``.

    Raises:
        ValueError: If the config is refused.
        FileNotFoundError: If there is nothing to collect.
    """
    if config.collect is not None:
        collect(config.collect)
    else:
        run_job(config)


@hydra.main(version_base="1.3", config_path="pkg://lightning_gnnopt.conf", config_name="study")
def _app(config: DictConfig) -> None:
    study(config)


def main() -> None:
    """Run the command line."""
    run(_app)


if __name__ == "__main__":
    main()
