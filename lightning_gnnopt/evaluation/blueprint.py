"""What another process needs to validate as this one does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.loggers.logger import Logger

_CUDNN_FLAGS = ("benchmark", "deterministic", "allow_tf32")


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A validation, ready to be packed.

    Attributes:
        module: The module as it is after its `setup("fit")`.
        datamodule: The datamodule as it is after its `setup("fit")`.
        datamodule_factory: Makes a datamodule in the other process instead, which is set up there.
        loaders: The validation loaders that were given to the Trainer, without a datamodule.
        callbacks: The callbacks of the other Trainer.
        trainer_options: Its other arguments.
        num_threads: torch's threads: sums over another number of them are rounded differently.
        num_interop_threads: torch's threads between operators.
        seed: Seeds Python, numpy and torch before each validation.
        seed_workers: Whether loader workers are seeded, see `seed_everything`.
        dtype: torch's default type.
        matmul_precision: torch's precision of float32 matrix products; None leaves it.
        cudnn: Flags of `torch.backends.cudnn`.
        logger: Name, version and folder of the first logger.
    """

    module: L.LightningModule
    datamodule: L.LightningDataModule | None = None
    datamodule_factory: Callable[[], L.LightningDataModule] | None = None
    loaders: Any = None
    callbacks: Sequence[L.Callback] = ()
    trainer_options: Mapping[str, Any] = field(default_factory=dict)
    num_threads: int = 1
    num_interop_threads: int = 1
    seed: int = 0
    seed_workers: bool = False
    dtype: torch.dtype = torch.float32
    matmul_precision: str | None = None
    cudnn: Mapping[str, bool] = field(default_factory=dict)
    logger: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        *,
        device: torch.device,
        callbacks: Sequence[L.Callback] = (),
        datamodule_factory: Callable[[], L.LightningDataModule] | None = None,
        num_threads: int | None = None,
    ) -> Blueprint:
        """Describe the validation of a Trainer that has been set up for `fit`.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            device: Where to validate.
            callbacks: Callbacks for the other Trainer; those of this one stay here.
            datamodule_factory: Makes the other process's datamodule; by default it gets this one's.
            num_threads: torch's threads there; this process's by default.

        Returns:
            The blueprint. It has the objects themselves, not copies.
        """
        # Lightning keeps the loaders that it was given nowhere else
        source = trainer.fit_loop.epoch_loop.val_loop._data_source
        datamodule = getattr(trainer, "datamodule", None)
        given = None if source.is_module() or datamodule is not None else source.instance
        return cls(
            module=pl_module,
            datamodule=None if datamodule_factory is not None else datamodule,
            datamodule_factory=datamodule_factory,
            loaders=None if datamodule_factory is not None else given,
            callbacks=list(callbacks),
            trainer_options={
                "accelerator": device.type,
                "devices": 1 if device.type == "cpu" or device.index is None else [device.index],
                "precision": trainer.precision,
                "limit_val_batches": trainer.limit_val_batches,
                "inference_mode": trainer.validate_loop.inference_mode,
                "detect_anomaly": trainer._detect_anomaly,
                "deterministic": _deterministic(),
                "max_epochs": trainer.max_epochs,
                "max_steps": trainer.max_steps,
                "log_every_n_steps": getattr(trainer, "log_every_n_steps", None),
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "default_root_dir": trainer.default_root_dir,
            },
            num_threads=num_threads or torch.get_num_threads(),
            num_interop_threads=torch.get_num_interop_threads(),
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
            seed_workers=bool(int(os.environ.get("PL_SEED_WORKERS", "0"))),
            dtype=torch.get_default_dtype(),
            matmul_precision=_matmul_precision(),
            cudnn=_cudnn_flags(),
            logger=_place_of(trainer),
        )

    def configure_torch(self) -> None:
        """Set this process, which has computed nothing yet, up as the one that the blueprint was made in."""
        torch.set_num_threads(self.num_threads)
        with contextlib.suppress(RuntimeError):  # too late: no more than slower
            torch.set_num_interop_threads(self.num_interop_threads)
        torch.set_default_dtype(self.dtype)
        if self.matmul_precision is not None:
            torch.set_float32_matmul_precision(self.matmul_precision)
        for name, value in self.cudnn.items():
            setattr(torch.backends.cudnn, name, value)

    def make_trainer(self, logger: Logger) -> L.Trainer:
        """Make the Trainer that validates, alone on its device, with nothing on the screen and no files."""
        return L.Trainer(
            **self.trainer_options,
            callbacks=list(self.callbacks),
            logger=logger,
            plugins=[LightningEnvironment()],
            strategy="auto",
            num_nodes=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
        )


def _place_of(trainer: L.Trainer) -> dict[str, Any]:
    if trainer.logger is None:
        return {}
    return {"name": trainer.logger.name, "version": trainer.logger.version, "log_dir": trainer.log_dir}


def _deterministic() -> Any:
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch's newer settings are in use, which do not mix with this one
        return None


def _cudnn_flags() -> dict[str, bool]:
    flags = {}
    for name in _CUDNN_FLAGS:
        with contextlib.suppress(RuntimeError):  # as above
            flags[name] = bool(getattr(torch.backends.cudnn, name))
    return flags
