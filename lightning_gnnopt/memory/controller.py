"""What `MemoryControl` does in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from torch.utils._pytree import tree_flatten

from lightning_gnnopt.memory.budget import read_budget
from lightning_gnnopt.memory.drawing import (
    Draw,
    batches_ahead,
    cut_from,
    draw_from,
    look_ahead,
    resample_of,
    spread_of,
    takes_transforms,
)
from lightning_gnnopt.memory.features import has_edges
from lightning_gnnopt.memory.fitter import Fitter
from lightning_gnnopt.memory.fitters import Fitters, Place
from lightning_gnnopt.memory.held import fingerprint, held_bytes
from lightning_gnnopt.memory.learned import Learned
from lightning_gnnopt.memory.learning import Learner
from lightning_gnnopt.memory.once import WarnOnce
from lightning_gnnopt.memory.policy import Policy
from lightning_gnnopt.memory.prober import Stage
from lightning_gnnopt.memory.reserved_factor import ReservedFactor
from lightning_gnnopt.memory.split_steps import SplitSteps
from lightning_gnnopt.memory.stage_checks import (
    check_splits,
    refuse_lazy,
    refuse_too_little,
    refuse_unknown,
    refuse_without_return,
    weights_reader,
)
from lightning_gnnopt.memory.step_watch import StepWatch
from lightning_gnnopt.memory.tally import Tally
from lightning_gnnopt.memory.transfer import Transfer


class Controller:
    """Learns what steps cost, makes batches fit, measures, and keeps count; for one run of a Trainer.

    It takes the place of the strategy's transfer and steps until :meth:`close`.

    Args:
        trainer: The Trainer, at `setup`.
        pl_module: Its module.
        budget: See `MemoryControl`, as all others.
        policy: What is tried with a batch that would not fit.
        predictor: The predictor's name.
        predictor_options: Its arguments.
        coverage: How sure an upper bound is.
        weight_attr: The attribute of edges that holds their weights.
        measure_every: Every how many steps the peak is measured.
        loaded: The state that was saved by an earlier run.

    Attributes:
        budget_bytes: The budget; None until the first stage starts.
        tally: What was done.
        learned: What was learned, by stage and number of the loader.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        *,
        budget: str | float,
        policy: Policy,
        predictor: str = "analytic",
        predictor_options: Mapping[str, Any] | None = None,
        coverage: float = 0.999,
        weight_attr: str | None = None,
        measure_every: int | None = None,
        loaded: Mapping[str, Any] | None = None,
    ) -> None:
        self.budget_bytes: int | None = None
        self.tally = Tally()
        self.learned: dict[Place, Learned] = {}
        self.loaded: Mapping[str, Any] = loaded or {}
        self._trainer: Any = trainer
        self._module = pl_module
        self._budget = budget
        self._policy = policy.with_depth_of(pl_module)
        self._predictor, self._predictor_options = predictor, dict(predictor_options or {})
        self._coverage = coverage
        self._weight_attr = weight_attr
        self._fingerprint = ""
        self._fitters = Fitters(self.tally)
        self._known: dict[Place, tuple[int, str]] = {}
        self._loaders: dict[Place, Any] = {}
        self._uncontrolled: set[Place] = set()
        self._drifted: set[tuple[Stage, str]] = set()
        self._warn = WarnOnce()
        self._watch: StepWatch | None = None
        self._measure_every = measure_every
        self._steps = SplitSteps(
            trainer,
            parts=self._fitters.parts,
            more_parts=self._fitters.more_parts,
            on_out_of_memory=self._on_out_of_memory,
        )
        self._transfer = Transfer(trainer, on_batch=self._fit_inline, on_loader=self._start_early)

    @property
    def pairs(self) -> Sequence[tuple[float, float]]:
        """Predicted and measured bytes of the last steps that were measured."""
        return () if self._watch is None else self._watch.pairs

    @property
    def last(self) -> tuple[float, float] | None:
        """The last of these."""
        return self.pairs[-1] if self.pairs else None

    def close(self) -> None:
        """Leave the Trainer's strategy and loaders as they were; may be called again."""
        self._steps.remove()
        self._transfer.remove()
        for place in list(self._loaders):
            self._release(place)
        if self._watch is not None:
            self._watch.close()

    # Stages

    def start(self, stage: Stage, loaders: Any) -> None:
        """Learn what the steps of a stage cost, as far as it is not known, and look at its batches from now on.

        Raises:
            ValueError: If the budget cannot be had or is below what the model takes.
        """
        refuse_lazy(self._module)
        self._fingerprint = fingerprint(self._trainer, self._module)
        self._read_budget(stage)
        flat = tree_flatten(loaders)[0]
        for index, loader in enumerate(flat):
            place = (stage, index)
            known = (id(loader), self._fingerprint)
            has_drifted = self.has_drifted(stage)
            if has_drifted:  # once: if it does not help, margins have to do
                self._drifted.add((stage, self._fingerprint))
            if self._known.get(place) != known or has_drifted:
                if self._loaders.get(place) is not loader:
                    self._release(place)
                    self._loaders[place] = loader
                self.learned.pop(place, None)
                if takes_transforms(loader) and self._learn(place, *draw_from(loader), len(flat) > 1):
                    transform = self._fitters[place]
                    if transform not in loader.transforms:
                        loader.add_transform(transform)
                self._known[place] = known  # the first batch of any other loader will do
            if place in self.learned:
                self._refresh(place)

    def has_changed(self) -> bool:
        """Whether what can be seen of the model has changed since the stage started."""
        return fingerprint(self._trainer, self._module) != self._fingerprint

    def has_drifted(self, stage: Stage) -> bool:
        """Whether an exact predictor is wrong all the time: the step must have changed.

        Under DDP all processes would have to learn anew together: margins have to do until the model is seen to change.
        """
        learned = self.learned.get((stage, 0))
        if learned is None or self._trainer.world_size > 1 or (stage, self._fingerprint) in self._drifted:
            return False
        return learned.has_drifted

    def _release(self, place: Place) -> None:
        fitter, loader = self._fitters.pop(place, None), self._loaders.pop(place, None)
        if fitter is not None and hasattr(loader, "remove_transform"):
            loader.remove_transform(fitter)

    def _read_budget(self, stage: Stage) -> None:
        held = held_bytes(self._module, self._trainer.optimizers, steady=stage == "train")
        if self.budget_bytes is None:
            now = held_bytes(self._module, self._trainer.optimizers)
            device = self._trainer.strategy.root_device
            self.budget_bytes = read_budget(self._budget, device, held_bytes=now)
            if device.type == "cpu" and (self._budget == "auto" or isinstance(self._budget, float)):
                self.budget_bytes //= max(1, int(self._trainer.num_devices))  # which share the machine
            self._watch = StepWatch(
                self._trainer, self._module, tally=self.tally, warn=self._warn, measure_every=self._measure_every
            )
        refuse_too_little(self.budget_bytes, held)

    def _start_early(self, loader: Any) -> None:
        """Start where seeds come back: Lightning asks for the number of batches, and for the first of them."""
        if self._trainer.training and "shrink" in self._policy.on_exceed:
            refuse_without_return(loader)
            loader.follow(self._trainer)
            self.start("train", loader)

    def _learn(self, place: Place, draw: Draw, num_inputs: int, several: bool) -> bool:
        """Learn a stage's steps; return whether there is anything to control."""
        (stage, index), loader = place, self._loaders[place]
        example = draw(1)
        if not has_edges(example):  # evaluated layer by layer
            self._uncontrolled.add(place)
            return False
        remedies = self._policy.remedies(stage)
        name, datamodule = self._weight_attr, self._trainer.datamodule
        weights = None if name is None else weights_reader(datamodule, name, example)
        if "split" in remedies:
            check_splits(self._module, example, stage, self._trainer.world_size, self._warn)
        assert self.budget_bytes is not None
        learner = Learner(
            trainer=self._trainer,
            pl_module=self._module,
            stage=stage,
            dataloader_idx=index if several else None,
            predictor=self._predictor,
            options={"fingerprint": self._fingerprint, **self._predictor_options},
            splits="split" in remedies,
            ahead=batches_ahead(loader, self._trainer.strategy.root_device, returns_seeds="shrink" in remedies),
            coverage=self._coverage,
            budget_bytes=self.budget_bytes,
            converted=not takes_transforms(loader),
        )
        self._transfer.enabled = self._steps.enabled = False
        try:
            self.learned[place] = learned = learner.learn(draw, num_inputs)
        finally:
            self._transfer.enabled = self._steps.enabled = True
        device, footprint = self._trainer.strategy.root_device, learned.footprint
        rows = look_ahead(loader, footprint)
        if not rows and device.type == "cuda" and footprint.is_ready:
            rows = [footprint.features(draw(num_inputs))]
        learned.reserved = ReservedFactor.of_stage(
            learned.tapes, footprint, rows, pl_module=self._module, device=device, budget_bytes=self.budget_bytes
        )
        spread_bytes = spread_of(footprint, rows)
        self.tally.add(probe_s=learned.probe_s, inline_s=learned.probe_s)
        learned.load_state_dict(self.loaded.get("predictors", {}).get(f"{stage}/{index}", {}))
        refuse_too_little(self.budget_bytes, learned.footprint.held_bytes)
        fitter = self._fitters.get(place)
        if fitter is None:
            fitter = Fitter(learned.footprint, self.budget_bytes, self._policy, stage, self.tally, weights=weights)
            fitter.is_inline = learner.converted
            self._fitters[place] = fitter
        fitter.footprint = learned.footprint  # a loader's threads may be using it: what it knows is replaced at once
        fitter.spread_bytes = spread_bytes
        return True

    def _refresh(self, place: Place) -> None:
        """Bring up to date what a stage's steps find there already."""
        stage, footprint = place[0], self.learned[place].footprint
        if stage == "train":  # was learned with what its steps leave
            return
        footprint.held_bytes = held_bytes(self._module, self._trainer.optimizers)
        training = self.learned.get(("train", 0))
        is_over = self._trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if stage == "val" and training is not None and self._watch is not None and not is_over:
            # The training loader keeps what it has ready.
            footprint.held_bytes += int(training.footprint.ahead.nbytes(self._watch.largest_batch_bytes))

    # Batches of loaders that take no transform

    def _fit_inline(self, batch: Any, stage: Stage, index: int) -> Any:
        place = (stage, index)
        loader = self._loaders.get(place)
        if loader is None or takes_transforms(loader):
            return batch
        refuse_unknown(batch, stage)
        if place not in self.learned and place not in self._uncontrolled:
            self._learn(place, *cut_from(batch, self._policy.depth), len(self._loaders) > 1)
        if place not in self._fitters:
            return batch
        return self._fitters[place].fit(batch, lambda: resample_of(loader, batch, self._trainer, index))

    # Steps

    def start_step(self, stage: Stage, batch: Any, index: int = 0) -> None:
        """Measure a step, if it is time to."""
        learned = self.learned.get((stage, index))
        if self._watch is not None and learned is not None:
            self._watch.start(stage, learned)

    def end_step(self, stage: Stage, batch: Any, index: int = 0) -> bool:
        """Compare a measured step with what was predicted, and learn from it; return whether it was measured."""
        learned = self.learned.get((stage, index))
        if self._watch is None or learned is None:
            return False
        return self._watch.end(stage, batch, learned, self._fitters[stage, index])

    def _on_out_of_memory(self, batch: Any, stage: str, error: BaseException) -> None:
        self.tally.add(out_of_memory=1)
        if self._watch is not None and self.budget_bytes is not None:
            self._watch.close()
            self._fitters.lower_budget(batch, stage, error, asked_bytes=self.budget_bytes)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What was learned from samples, as plain types and tensors; a tape is solved anew faster than it is read."""
        predictors = {
            f"{stage}/{index}": states
            for (stage, index), learned in self.learned.items()
            if (states := learned.state_dict())
        }
        return {"predictors": {**self.loaded.get("predictors", {}), **predictors}}
