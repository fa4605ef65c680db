"""The thesis's experiments as multiruns: ``python -m lightning_gnnopt.study -m``, and others by ``--config-name``."""

from __future__ import annotations

from importlib import import_module

import hydra
from omegaconf import DictConfig

from lightning_gnnopt._cli import run
from lightning_gnnopt.studies.collecting import collect, room_of


def study(config: DictConfig) -> None:
    """Run one job of a study, or collect what an earlier run has left.

    Args:
        config: A composed config such as ``conf/study.yaml``.

    Raises:
        ValueError: If the config is refused.
        FileNotFoundError: If there is nothing to collect.
    """
    if config.collect is not None:
        collect(config.kind, config.collect)
    else:
        import_module(f"{room_of(config.kind)}.job").run_job(config)


@hydra.main(version_base="1.3", config_path="pkg://lightning_gnnopt.conf", config_name="study")
def _app(config: DictConfig) -> None:
    study(config)


def main() -> None:
    """Run the command line."""
    run(_app)


if __name__ == "__main__":
    main()
