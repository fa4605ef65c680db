"""What `MemoryControl` does in one run."""

from __future__ import annotations

import inspect
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.memory.budget import read_budget
from lightning_gnnopt.memory.cutting import cut_batch
from lightning_gnnopt.memory.features import has_edges, is_batch
from lightning_gnnopt.memory.fitter import Fitter, names_seeds
from lightning_gnnopt.memory.footprint import Ahead
from lightning_gnnopt.memory.held import fingerprint, held_bytes
from lightning_gnnopt.memory.learning import Draw, Learned, Learner
from lightning_gnnopt.memory.peaks import StepPeaks
from lightning_gnnopt.memory.policy import Policy
from lightning_gnnopt.memory.prober import FIRST, LAST, MIDDLE, STEP, Stage
from lightning_gnnopt.memory.split_steps import Part, SplitSteps
from lightning_gnnopt.memory.structure import BatchStructure, select
from lightning_gnnopt.memory.tally import Tally

_STAGES: dict[str, Stage] = {
    "train": "train",
    "sanity_check": "val",
    "validate": "val",
    "test": "test",
    "predict": "predict",
}
_MAX_PAIRS = 10_000
_LOWERED = 0.9  # of what was predicted for a step that ran out of memory
_LEAST_BUDGET = 0.5  # of what was asked for
_EXCESS_STEPS = 8
_TOLERANCE = 0.001
_LOOKED_AT = 8
_NEAR = 0.01  # a change of what is left of the budget that matters

Place = tuple[Stage, int]


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
        pairs: Predicted and measured bytes of the last steps that were measured.
        last: The last of these.
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
        self.pairs: deque[tuple[float, float]] = deque(maxlen=_MAX_PAIRS)
        self.last: tuple[float, float] | None = None
        self.loaded: Mapping[str, Any] = loaded or {}
        self._trainer: Any = trainer
        self._module = pl_module
        self._budget = budget
        num_layers = getattr(pl_module, "num_layers", None)
        if policy.depth is None and isinstance(num_layers, int) and num_layers > 0:
            policy = replace(policy, depth=num_layers)
        self._policy = policy
        self._predictor, self._predictor_options = predictor, dict(predictor_options or {})
        self._coverage = coverage
        self._weight_attr = weight_attr
        self._fingerprint = ""
        self._fitters: dict[Place, Fitter] = {}
        self._known: dict[Place, tuple[int, str]] = {}
        self._loaders: dict[Place, Any] = {}
        self._largest_batch_bytes = 0
        self._kind = STEP
        self._counts = True
        self._uncontrolled: set[Place] = set()
        self._spread_bytes: dict[Place, float] = {}
        self._warned: set[str] = set()
        self._excess: deque[float] = deque(maxlen=_EXCESS_STEPS)
        self._drifted: set[tuple[Stage, str]] = set()
        self._busy = False
        self._peaks: StepPeaks | None = None
        self._measure_every = measure_every
        self._strategy: Any = trainer.strategy
        self._steps = SplitSteps(
            trainer, parts=self._parts, more_parts=self._more_parts, on_out_of_memory=self._on_out_of_memory
        )
        self._transfer = self._strategy.batch_to_device
        self._process_loader = self._strategy.process_dataloader
        vars(self._strategy).update(batch_to_device=self._batch_to_device, process_dataloader=self._process_dataloader)

    def close(self) -> None:
        """Leave the Trainer's strategy and loaders as they were; may be called again."""
        self._steps.remove()
        for name in ("batch_to_device", "process_dataloader"):
            vars(self._strategy).pop(name, None)
        for place in list(self._loaders):
            self._release(place)
        if self._peaks is not None:
            self._peaks.close()

    # Stages

    def start(self, stage: Stage, loaders: Any) -> None:
        """Learn what the steps of a stage cost, as far as it is not known, and look at its batches from now on.

        Raises:
            ValueError: If the budget cannot be had or is below what the model takes.
        """
        if any(is_lazy(parameter) for parameter in self._module.parameters()):
            raise ValueError(
                f"`MemoryControl` needs parameters that have a shape, but {type(self._module).__name__} has lazy ones."
                " HINT: run one batch through the model before the Trainer starts, or give the layers their sizes."
            )
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
                if hasattr(loader, "add_transform"):
                    self._learn_from_loader(place, loader, len(flat) > 1)
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
        return any(getattr(predictor, "has_drifted", False) for predictor in learned.footprint.predictors.values())

    def _release(self, place: Place) -> None:
        fitter, loader = self._fitters.pop(place, None), self._loaders.pop(place, None)
        if fitter is not None and hasattr(loader, "remove_transform"):
            loader.remove_transform(fitter)

    def _read_budget(self, stage: Stage) -> None:
        held = held_bytes(self._module, self._trainer.optimizers, steady=stage == "train")
        if self.budget_bytes is None:
            now = held_bytes(self._module, self._trainer.optimizers)
            device = self._strategy.root_device
            self.budget_bytes = read_budget(self._budget, device, held_bytes=now)
            if device.type == "cpu" and (self._budget == "auto" or isinstance(self._budget, float)):
                self.budget_bytes //= max(1, int(self._trainer.num_devices))  # which share the machine
            self._peaks = StepPeaks(self._strategy.root_device, every=self._measure_every)
        if held >= self.budget_bytes:
            raise self._too_little(held)

    def _too_little(self, held: int) -> ValueError:
        return ValueError(
            f"`budget` must be larger than the {held:,} bytes that the model, its gradients and its optimizer take,"
            f" but is {self.budget_bytes:,}. HINT: raise `budget`, or lower the model's width; smaller batches"
            " cannot help."
        )

    def _learn_from_loader(self, place: Place, loader: Any, several: bool) -> None:
        def draw(num_inputs: int) -> Any:
            return loader.draw(num_inputs)[1]

        num_inputs = -(-loader.order.num_local // max(1, len(loader.order)))
        if not self._learn(place, draw, num_inputs, several):
            return
        if self._fitters[place] not in loader.transforms:
            loader.add_transform(self._fitters[place])

    def _process_dataloader(self, loader: Any) -> Any:
        """Start early where seeds come back: Lightning asks for the number of batches, and for the first of them."""
        loader = self._process_loader(loader)
        if self._trainer.training and "shrink" in self._policy.on_exceed:
            if not hasattr(loader, "add_transform"):
                raise ValueError(
                    "`on_exceed='shrink'` brings seeds back in further batches, which needs `GraphDataModule` or"
                    f" `PrefetchLoader`, but the loader is a {type(loader).__name__}. HINT: use 'split' or 'prune'."
                )
            loader.follow(self._trainer)
            self.start("train", loader)
        return loader

    def _learn(self, place: Place, draw: Draw, num_inputs: int, several: bool) -> bool:
        """Learn a stage's steps; return whether there is anything to control."""
        stage, index = place
        example = draw(1)
        if not has_edges(example):  # evaluated layer by layer
            self._uncontrolled.add(place)
            return False
        self._check_weights(example)
        counts_degrees = sorted({type(m).__name__ for m in self._module.modules() if _counts_degrees(m)})
        if "split" in self._policy.remedies(stage) and counts_degrees:
            self._warn_once(
                f"Batches that are run in parts give {', '.join(counts_degrees)} other degrees at the rim of a part"
                " than in the whole batch, so gradients do not add up exactly. HINT: `normalize=False` with weights"
                " from the whole graph, or this package's `GCN`."
            )
        if "split" in self._policy.remedies(stage) and not names_seeds(example):
            raise ValueError(
                f"{'`on_exceed`' if stage == 'train' else '`exact=True`'} runs batches in parts, which needs batches of"
                f" nodes of one type that say their seeds (`batch_size`), but the {stage!r} loader yields"
                f" {type(example).__name__} with {', '.join(map(str, example.keys()))}. HINT: ('resample', 'prune')."
            )
        if "split" in self._policy.remedies(stage) and self._synchronises:
            raise ValueError(
                "Processes that run batches in different numbers of parts cannot synchronise within a step, but the"
                " model has `SyncBatchNorm`. HINT: `sync_batchnorm=False`, or let batches be pruned."
            )
        assert self.budget_bytes is not None
        learner = Learner(
            trainer=self._trainer,
            pl_module=self._module,
            stage=stage,
            dataloader_idx=index if several else None,
            predictor=self._predictor,
            options={"fingerprint": self._fingerprint, **self._predictor_options},
            splits="split" in self._policy.remedies(stage),
            ahead=self._ahead(self._loaders[place], returns_seeds="shrink" in self._policy.remedies(stage)),
            coverage=self._coverage,
            budget_bytes=self.budget_bytes,
            converted=not hasattr(self._loaders[place], "add_transform"),
        )
        self._busy = True
        self._steps.enabled = False
        try:
            self.learned[place] = learned = learner.learn(draw, num_inputs)
        finally:
            self._busy, self._steps.enabled = False, True
        self._look_ahead(place, learned, self._loaders[place])
        self.tally.add(probe_s=learned.probe_s, inline_s=learned.probe_s)
        self._take_loaded(place, learned)
        if learned.footprint.held_bytes >= self.budget_bytes:
            raise self._too_little(learned.footprint.held_bytes)
        if place in self._fitters:  # a loader's threads may be using it: what it knows is replaced at once
            self._fitters[place].footprint = learned.footprint
            self._fitters[place].spread_bytes = self._spread_bytes.get(place)
            return True
        self._fitters[place] = Fitter(
            learned.footprint, self.budget_bytes, self._policy, stage, self.tally, weights=self._weights()
        )
        self._fitters[place].is_inline = learner.converted
        self._fitters[place].spread_bytes = self._spread_bytes.get(place)
        return True

    def _look_ahead(self, place: Place, learned: Learned, loader: Any) -> None:
        """See how large batches are, those that wait among them, from some that are sampled and not built."""
        footprint = learned.footprint
        if hasattr(loader, "sample"):
            whole = max(1, len(loader.order) - 1)  # the last one may be smaller
            numbers = np.linspace(0, whole - 1, min(_LOOKED_AT, whole)).astype(int)
            rows = [footprint.features(loader.sample(int(number))) for number in numbers]
            footprint.ahead = replace(footprint.ahead, least_bytes=max(map(footprint.batch_bytes, rows)))
            if len(rows) > 1 and footprint.is_ready:
                self._spread_bytes[place] = float(np.std([footprint.upper(row) for row in rows], ddof=1))

    def _refresh(self, place: Place) -> None:
        """Bring up to date what a stage's steps find there already."""
        stage, footprint = place[0], self.learned[place].footprint
        if stage == "train":  # was learned with what its steps leave
            return
        footprint.held_bytes = held_bytes(self._module, self._trainer.optimizers)
        training = self.learned.get(("train", 0))
        is_over = self._trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if stage == "val" and training is not None and not is_over:  # its loader keeps what it has ready
            footprint.held_bytes += int(training.footprint.ahead.nbytes(self._largest_batch_bytes))

    # Batches of loaders that take no transform

    def _batch_to_device(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        stage = _STAGES.get(str(self._trainer.state.stage and self._trainer.state.stage.value))
        if self._busy or stage is None or batch is None:
            return self._transfer(batch, *args, **kwargs)
        place = (stage, int(kwargs.get("dataloader_idx", 0)))
        loader = self._loaders.get(place)
        if loader is None or hasattr(loader, "add_transform"):
            return self._transfer(batch, *args, **kwargs)
        if not is_batch(batch):
            raise TypeError(
                f"`MemoryControl` needs batches that are PyG's `Data` or `HeteroData`, but the {stage!r} loader yields"
                f" {type(batch).__name__}. HINT: load with `GraphDataModule` or one of PyG's loaders, or leave"
                " `MemoryControl` out."
            )
        if place not in self.learned and place not in self._uncontrolled:
            self._learn(place, _cut_from(batch, self._policy.depth), _num_seeds(batch), len(self._loaders) > 1)
        if place in self._fitters:
            batch = self._fitters[place](batch, self._resample_of(loader, batch, place[1]))
        return self._transfer(batch, *args, **kwargs)

    def _resample_of(self, loader: Any, batch: Any, index: int) -> Callable[[int], Any] | None:
        """How PyG's loaders around nodes draw the same seeds again; None for others."""
        ids = batch.get("input_id") if isinstance(batch, Data) else None
        if not isinstance(loader, NodeLoader) or ids is None:
            return None
        known = loader.input_data.input_id
        places = ids.cpu()
        if known is not None:  # they are names of the user's, or of nodes
            order = known.argsort()
            places = order[torch.searchsorted(known[order], places).clamp(max=len(known) - 1)]
            if not torch.equal(known[places], ids.cpu()):
                return None

        def resample(attempt: int) -> Any:
            with isolate_rng():  # which PyG draws from: other batches are not to depend on this one's draws
                torch.manual_seed(zlib.crc32(ids.cpu().numpy().tobytes()) + attempt)
                drawn = self._trainer.precision_plugin.convert_input(loader(places))
            return self._module._on_before_batch_transfer(drawn, dataloader_idx=index)

        return resample

    # Steps

    def start_step(self, stage: Stage, batch: Any, index: int = 0) -> None:
        """Measure a step, if it is time to."""
        if self._peaks is None or (stage, index) not in self.learned:
            return
        self._kind, self._counts = STEP, True
        if stage == "train":
            self._kind = self._kind_of_step()
            # A first step makes the optimizer's state, and validation clears gradients: neither is like all others.
            self._counts = any(parameter.grad is not None for parameter in self._module.parameters())
        self._peaks.start(stage, wanted=not self.learned[stage, index].footprint.is_ready)

    def end_step(self, stage: Stage, batch: Any, index: int = 0) -> None:
        """Compare a measured step with what was predicted, and learn from it."""
        learned = self.learned.get((stage, index))
        if self._peaks is None or learned is None:
            return
        peak = self._peaks.stop(stage)
        if peak is None:
            return
        started_s = time.perf_counter()
        footprint, fitter = learned.footprint, self._fitters[stage, index]
        features = footprint.features(batch)
        touched = fitter.was_touched(features)
        predictor = footprint.predictors.get(self._kind, footprint.predictors[STEP])
        split, fitter.split_predicted = fitter.split_predicted, None
        constant, growth = footprint.constant_bytes(features), peak.allocated_bytes
        if peak.held_bytes is not None:  # what nobody can count, such as workspaces, if it stays
            self._excess.append(peak.held_bytes - constant)
            if len(self._excess) == _EXCESS_STEPS and min(self._excess) > 0:
                footprint.held_bytes += int(min(self._excess))
                self._excess.clear()
            constant = float(peak.held_bytes)
        self._largest_batch_bytes = max(self._largest_batch_bytes, int(footprint.batch_bytes(features)))
        if self._counts and footprint.is_ready:
            predicted = constant + float(predictor.predict(features)) if split is None else split
            self.last = predicted, constant + growth
            self.pairs.append(self.last)
            self.tally.observe(*self.last, fitter.budget_bytes, touched=touched)
            self._judge(stage, learned, fitter, predicted, constant + growth)
        if split is None and self._counts:
            near, room = predictor.margin.near_bytes, max(1.0, fitter.budget_bytes - constant)
            if near is None or abs(near - room) > _NEAR * room:
                predictor.margin.near_bytes = room
            predictor.update(features, growth)
        self.tally.add(inline_s=time.perf_counter() - started_s)

    def _judge(self, stage: Stage, learned: Learned, fitter: Fitter, predicted: float, measured: float) -> None:
        """Say so, once, if a step was over the budget or is not what it was."""
        if measured > fitter.budget_bytes and "watch" not in self._policy.on_exceed:
            self._warn_once(
                f"A {stage!r} step took {format_bytes(measured)} ({measured:,.0f} bytes), more than the budget of"
                f" {fitter.budget_bytes:,}; {predicted:,.0f} had been predicted. HINT: lower `budget`, and look at"
                " `MemoryControl`'s table at the end."
            )
        if learned.tapes and fitter.split_predicted is None and measured > (1 + _TOLERANCE) * predicted:
            assert self._peaks is not None
            self._peaks.every = 1  # as long as it is not known what else it depends on
            self._warn_once(
                f"A {stage!r} step took {measured / predicted - 1:.1%} more than was predicted from tiny batches: it"
                " depends on more than the batch's numbers of nodes and edges. Predictions have a margin from now on."
            )

    def _warn_once(self, message: str) -> None:
        kind = message.split(" step took ")[0] + message[-40:]
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(message)

    def _kind_of_step(self) -> str:
        epoch_loop, window = self._trainer.fit_loop.epoch_loop, self._trainer.accumulate_grad_batches
        starts, ends = epoch_loop.batch_idx % window == 0, not epoch_loop._should_accumulate()
        if starts:
            return STEP if ends else FIRST
        return LAST if ends else MIDDLE

    def _parts(self, batch: Any, stage: str) -> Sequence[Part] | None:
        fitter = self._fitter_of(stage)
        if fitter is None:
            return None
        started_s = time.perf_counter()
        parts = fitter.parts(batch)
        self.tally.add(inline_s=time.perf_counter() - started_s)
        return parts

    def _more_parts(self, batch: Any, stage: str, num_parts: int) -> Sequence[Part] | None:
        fitter = self._fitter_of(stage)
        return None if fitter is None else fitter.more_parts(batch, num_parts)

    def _fitter_of(self, stage: str) -> Fitter | None:
        # Steps do not say which of several loaders their batch is from; their footprints differ little.
        return next((fitter for place, fitter in self._fitters.items() if place[0] == stage), None)

    def _on_out_of_memory(self, batch: Any, stage: str, error: BaseException) -> None:
        """Learn from a step that ran out of memory: there is less than was thought."""
        self.tally.add(out_of_memory=1)
        fitter = self._fitter_of(stage)
        if self._peaks is not None:
            self._peaks.close()
        if fitter is None or self.budget_bytes is None:
            return
        first_line = next(iter(str(error).splitlines()), "no message")
        said = f"A {stage!r} step ran out of memory ({type(error).__name__}: {first_line})."
        if fitter.footprint.is_ready:
            predicted = fitter.footprint.predict(fitter.footprint.features(batch))
            lowered = int(max(min(_LOWERED * predicted, fitter.budget_bytes), _LEAST_BUDGET * self.budget_bytes))
            said += f" {format_bytes(predicted)} had been predicted."
            if lowered < fitter.budget_bytes:
                said += f" The budget is {format_bytes(lowered)} from now on,"
                said += f" instead of {format_bytes(fitter.budget_bytes)}."
            for other in self._fitters.values():
                other.budget_bytes = min(other.budget_bytes, lowered)
        rank_zero_warn(said + " The step is run again in parts.")

    # Pieces of it

    def _ahead(self, loader: Any, *, returns_seeds: bool) -> Ahead:
        """The batches that a loader has ready while a step runs, on the device that trains."""
        options = getattr(loader, "options", None)
        if options is not None and hasattr(options, "max_ahead"):
            batches = options.max_ahead if options.num_workers else 0
            # Of a loader without a length Lightning asks for one batch ahead.
            return Ahead(batches=batches + returns_seeds, max_bytes=options.max_bytes)
        workers = int(getattr(loader, "num_workers", 0) or 0)
        if self._strategy.root_device.type != "cpu" or not workers:
            return Ahead()
        return Ahead(batches=workers * int(getattr(loader, "prefetch_factor", None) or 2))

    @property
    def _synchronises(self) -> bool:
        modules = self._module.modules()
        return self._trainer.world_size > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in modules)

    def _check_weights(self, example: Any) -> None:
        name = self._weight_attr
        if name is not None and example.get(name) is None:
            raise ValueError(
                f"`weight_attr` must name an attribute of the edges of each batch, but {name!r} is none:"
                f" there are {', '.join(map(str, example.keys()))}. HINT: weights are sliced like `edge_attr`."
            )

    def _weights(self) -> Callable[[Any], Any] | None:
        name, datamodule = self._weight_attr, self._trainer.datamodule
        if name is None:
            return None

        def weights(batch: Any) -> Any:
            if hasattr(batch, "positions"):  # a subgraph, whose attributes are not sliced yet
                return np.asarray(datamodule.data[name])[datamodule.topology.edge_ids[batch.positions]]
            return batch[name].detach().cpu().numpy()

        return weights

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What was learned from samples, as plain types and tensors; a tape is solved anew faster than it is read."""
        predictors = {
            f"{stage}/{index}": {
                kind: predictor.state_dict() for kind, predictor in learned.footprint.predictors.items()
            }
            for (stage, index), learned in self.learned.items()
            if not learned.tapes
        }
        return {"predictors": {**self.loaded.get("predictors", {}), **predictors}}

    def _take_loaded(self, place: Place, learned: Learned) -> None:
        states = self.loaded.get("predictors", {}).get(f"{place[0]}/{place[1]}", {})
        for kind, predictor in learned.footprint.predictors.items():
            if not learned.tapes and kind in states:
                predictor.load_state_dict(states[kind])


def _counts_degrees(module: nn.Module) -> bool:
    """Whether a layer of PyG's normalises by the degrees that it finds in the batch."""
    if type(module).__name__ in ("PNAConv", "DegreeScalerAggregation"):
        return True
    parts = inspect.getmodule(type(module))
    return bool(getattr(module, "normalize", False)) and hasattr(parts, "gcn_norm")


def _num_seeds(batch: Any) -> int:
    return 1 if isinstance(batch, HeteroData) else BatchStructure.of_batch(batch).num_seeds


def _cut_from(batch: Any, depth: int | None) -> Draw:
    """Make smaller batches out of one."""
    if isinstance(batch, HeteroData):
        return lambda num_inputs: batch
    structure = BatchStructure.of_batch(batch)

    def draw(num_inputs: int) -> Any:
        if num_inputs >= structure.num_seeds:
            return batch
        return cut_batch(batch, select(structure, seeds=np.arange(num_inputs), depth=depth))

    return draw
