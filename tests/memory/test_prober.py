"""What the prober records is compared with `PeakMeter` around a plain training loop that knows no Lightning."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.memory import PeakMeter
from lightning_gnnopt.memory.prober import FIRST, LAST, MIDDLE, STEP, Recorded, StepProber
from tests.memory.runs import Net, fit, make_datamodule, make_trainer, no_warnings, same_state

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.1),
}


def batches(*sizes: int) -> list[Data]:
    datamodule = make_datamodule()
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    return [loader.draw(size)[1] for size in sizes or (4, 32, 17)]


class Plain(Net):
    """Logs nothing, so that all it allocates is in the reference too."""

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self.loss(batch, self(batch)[: batch.batch_size])

    def validation_step(self, batch: Data, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch)[: batch.batch_size]

    def predict_step(self, batch: Data, batch_idx: int) -> Tensor:  # type: ignore[override]
        return self(batch)[: batch.batch_size]


class InRun(Callback):
    """Calls a function at a run's first training step."""

    def __init__(self, function: Callable[[L.Trainer, Any], Any]) -> None:
        self.function = function
        self.results: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.results:
            self.results.append(self.function(trainer, pl_module))


def in_run(module: L.LightningModule, function: Callable[[L.Trainer, Any], Any], **kwargs: Any) -> Any:
    callback = InRun(function)
    fit(module, make_datamodule(), callback, max_epochs=1, limit_val_batches=0, **kwargs)
    (result,) = callback.results
    return result


def peaks_of(streams: list[Any]) -> list[int]:
    return [int(np.cumsum(stream).max(initial=0)) for stream in streams]


def reference(module: Plain, some: list[Data], *, window: bool = False, clip: float | None = None) -> list[Any]:
    """Peaks of each batch's step after two others, in Lightning's order: forward, `zero_grad`, backward, step."""
    module = copy.deepcopy(module)
    optimizer = module.configure_optimizers()
    kinds = (FIRST, MIDDLE, LAST) if window else (STEP,)

    def step(batch: Data, kind: str) -> int:
        with PeakMeter("cpu") as meter:
            loss = module.training_step(batch, 0) / len(kinds)
            if kind in (STEP, FIRST):
                optimizer.zero_grad()
            loss.backward()
            if kind in (STEP, LAST):
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
        del loss
        return meter.peak.allocated_bytes

    for _ in range(2):
        for kind in kinds:
            step(some[0], kind)
    return [[step(batch, kind) for kind in kinds] for batch in some]


@pytest.mark.parametrize("conv", ["sage", "gat"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_peaks_are_those_of_a_plain_loop(name: str, conv: str) -> None:
    some = batches()
    module = Plain(conv, optimizer=OPTIMIZERS[name])
    expected = reference(module, some)
    recorded: Recorded = in_run(module, lambda t, m: StepProber(t, m, "train").record(some))
    assert list(recorded.streams) == [STEP]
    # Lightning's closure keeps a copy of the loss, 4 bytes, which are there at the peak or not.
    for peak, (of_loop,) in zip(peaks_of(recorded.streams[STEP]), expected, strict=True):
        assert 0 <= peak - of_loop <= 8


def test_peaks_of_accumulation_are_those_of_a_plain_loop() -> None:
    some = batches()
    module = Plain(optimizer=OPTIMIZERS["adam"])
    expected = reference(module, some, window=True)
    recorded: Recorded = in_run(module, lambda t, m: StepProber(t, m, "train").record(some, accumulate=True))
    assert list(recorded.streams) == [STEP, FIRST, MIDDLE, LAST]
    for place, kind in enumerate((FIRST, MIDDLE, LAST)):
        for peak, of_loop in zip(peaks_of(recorded.streams[kind]), expected, strict=True):
            assert 0 <= peak - of_loop[place] <= 8


def test_clipping_is_part_of_the_step() -> None:
    some = batches()
    module = Plain(optimizer=OPTIMIZERS["sgd"], hidden=256)
    expected = reference(module, some, clip=0.5)
    recorded = in_run(module, lambda t, m: StepProber(t, m, "train").record(some), gradient_clip_val=0.5)
    for peak, (of_loop,) in zip(peaks_of(recorded.streams[STEP]), expected, strict=True):
        assert 0 <= peak - of_loop <= 8
    plain = in_run(Plain(optimizer=OPTIMIZERS["sgd"], hidden=256), lambda t, m: StepProber(t, m, "train").record(some))
    assert [len(s) for s in recorded.streams[STEP]] != [len(s) for s in plain.streams[STEP]]


def test_events_are_the_same_sequence_for_all_batches() -> None:
    recorded = in_run(Plain("gat"), lambda t, m: StepProber(t, m, "train").record(batches()))
    signs = [np.sign(stream).tolist() for stream in recorded.streams[STEP]]
    assert all(stream.dtype == np.int64 for stream in recorded.streams[STEP])
    assert signs[0] == signs[1] == signs[2]
    # A warm step ends with what it began with: it gives back the gradients of the one before, and leaves its own. The
    # loss, 4 bytes, is still there.
    assert [int(stream.sum()) for stream in recorded.streams[STEP]] == [4, 4, 4]


def test_labels_name_modules_and_operators() -> None:
    recorded = in_run(Plain("gat"), lambda t, m: StepProber(t, m, "train").record(batches()))
    assert len(recorded.labels) == len(recorded.streams[STEP][0])
    assert any("convs.0" in label for label in recorded.labels)
    assert any("convs.1" in label for label in recorded.labels)
    assert any("Backward" in label for label in recorded.labels)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_held_between_steps(name: str) -> None:
    module = Plain(optimizer=OPTIMIZERS[name])
    parameters = sum(p.nbytes for p in module.parameters())
    metrics = sum(b.nbytes for b in module.buffers())
    num_tensors = len(list(module.parameters()))
    state = {"sgd": 0, "momentum": parameters, "adam": 2 * parameters + 4 * num_tensors}[name]
    recorded = in_run(module, lambda t, m: StepProber(t, m, "train").record(batches()))
    assert recorded.held_bytes == 2 * parameters + metrics + state


def test_measuring_gives_the_peak_of_the_recording() -> None:
    some = batches()

    def both(trainer: L.Trainer, module: Any) -> Any:
        prober = StepProber(trainer, module, "train")
        return prober.record(some), [prober.measure(batch) for batch in some]

    recorded, measured = in_run(Plain("gat"), both)
    assert [peak for peak, _ in measured] == peaks_of(recorded.streams[STEP])
    assert {held for _, held in measured} == {recorded.held_bytes}


@pytest.mark.parametrize("what", ["record", "accumulate", "measure"])
def test_probes_leave_no_trace(what: str) -> None:
    def probe(trainer: L.Trainer, module: Any) -> None:
        prober = StepProber(trainer, module, "train")
        if what == "measure":
            prober.measure(batches(20)[0])
        else:
            prober.record(batches(), accumulate=what == "accumulate")

    ends = []
    for function in (lambda trainer, module: None, probe):
        module = Net("gat", batch_norm=True, dropout=0.4)
        callback = InRun(function)
        trainer = fit(module, make_datamodule(), callback)
        ends.append((module.state_dict(), trainer.optimizers[0].state_dict(), dict(trainer.callback_metrics)))
    assert same_state(*ends)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_is_recorded_without_gradients(stage: str) -> None:
    some, module = batches(), Plain("gat")
    module.test_step = module.validation_step  # type: ignore[method-assign, assignment]
    expected = []
    with torch.inference_mode():
        again = copy.deepcopy(module).eval()
        for batch in [some[0], *some]:
            with PeakMeter("cpu") as meter:
                output = again(batch)[: batch.batch_size]
            expected.append(meter.peak.allocated_bytes)
            del output
    results: list[Recorded] = []
    name = {"validate": "val", "test": "test", "predict": "predict"}[stage]

    class AtStart(Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if not results:
                results.append(StepProber(trainer, pl_module, name).record(some))  # type: ignore[arg-type]

        on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    trainer = make_trainer(AtStart())
    with no_warnings():
        getattr(trainer, stage)(module, make_datamodule(), **({} if stage == "predict" else {"verbose": False}))
    assert peaks_of(results[0].streams[STEP]) == expected[1:]
    assert results[0].held_bytes == sum(t.nbytes for t in [*module.parameters(), *module.buffers()])


def test_the_number_of_the_loader_is_passed_on() -> None:
    seen: list[int] = []

    class Several(Plain):
        def validation_step(self, batch: Data, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            seen.append(dataloader_idx)
            return self(batch)

    def probe(trainer: L.Trainer, module: Any) -> Any:
        return StepProber(trainer, module, "val", dataloader_idx=1).record(batches(4))

    callback = InRun(probe)
    callback.on_validation_batch_start = (  # type: ignore[attr-defined]
        lambda trainer, module, *args: callback.on_train_batch_start(trainer, module, None, 0)
    )
    trainer = make_trainer(callback)
    datamodule = make_datamodule()
    datamodule.setup("fit")
    with no_warnings():
        trainer.validate(Several(), [datamodule.val_dataloader(), datamodule.val_dataloader()], verbose=False)
    num_probes = len(seen) - 4
    assert num_probes > 0
    assert seen[:num_probes] == [1] * num_probes


@pytest.mark.parametrize("converted", [False, True])
def test_hooks_before_the_transfer_run_unless_they_have(converted: bool) -> None:
    seen: list[str] = []

    class Hooked(Plain):
        def on_before_batch_transfer(self, batch: Data, dataloader_idx: int) -> Data:
            seen.append("before")
            return batch

        def on_after_batch_transfer(self, batch: Data, dataloader_idx: int) -> Data:
            seen.append("after")
            return batch

    def probe(trainer: L.Trainer, module: Any) -> None:
        seen.clear()
        StepProber(trainer, module, "train", converted=converted).measure(batches(4)[0])
        results.append(seen.copy())

    results: list[list[str]] = []
    in_run(Hooked(), probe)
    assert results == [["after"] * 2 if converted else ["before", "after"] * 2]


def test_manual_optimization_is_recorded_whole() -> None:
    class Manual(Plain):
        def __init__(self) -> None:
            super().__init__(optimizer=OPTIMIZERS["adam"])
            self.automatic_optimization = False

        def training_step(self, batch: Data, batch_idx: int) -> None:  # type: ignore[override]
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    some = batches()
    expected = reference(Plain(optimizer=OPTIMIZERS["adam"]), some)
    recorded = in_run(Manual(), lambda t, m: StepProber(t, m, "train").record(some))
    for peak, (of_loop,) in zip(peaks_of(recorded.streams[STEP]), expected, strict=True):
        assert 0 <= peak - of_loop <= 8


def test_under_a_profiler_it_records_in_a_thread_of_its_own() -> None:
    some = batches()

    def profiled(trainer: L.Trainer, module: Any) -> Any:
        plain = StepProber(trainer, module, "train").record(some)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            return plain, StepProber(trainer, module, "train").record(some)

    plain, other = in_run(Plain(), profiled)
    for one, two in zip(plain.streams[STEP], other.streams[STEP], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("under_a_profiler", [False, True])
def test_what_a_step_raises_is_raised(under_a_profiler: bool) -> None:
    class Fails(Plain):
        def training_step(self, batch: Data, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if batch.batch_size == 5:
                raise ArithmeticError("five")
            return loss

    def probe(trainer: L.Trainer, module: Any) -> Any:
        before = copy.deepcopy(module.state_dict()), torch.get_rng_state(), torch.get_num_threads(), gc.isenabled()
        try:
            if under_a_profiler:
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
                    StepProber(trainer, module, "train").record(batches(4, 5))
            else:
                StepProber(trainer, module, "train").record(batches(4, 5))
        except ArithmeticError as error:
            message = str(error)
        after = copy.deepcopy(module.state_dict()), torch.get_rng_state(), torch.get_num_threads(), gc.isenabled()
        return message, before, after

    message, before, after = in_run(Fails(batch_norm=True, dropout=0.5), probe)
    assert message == "five"
    assert same_state(before, after)


def test_tapes_are_recorded_on_one_thread_and_without_the_collector() -> None:
    seen: list[tuple[int, bool]] = []

    class Looks(Plain):
        def training_step(self, batch: Data, batch_idx: int) -> Tensor:
            seen.append((torch.get_num_threads(), gc.isenabled()))
            return super().training_step(batch, batch_idx)

    def probe(trainer: L.Trainer, module: Any) -> Any:
        StepProber(trainer, module, "train").record(batches(4, 5))
        return seen.copy(), (torch.get_num_threads(), gc.isenabled())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        during, after = in_run(Looks(), probe)
    finally:
        torch.set_num_threads(before)
    # Two warm-up steps, two recorded ones, one with labels; then a look whether more threads take more memory.
    assert [threads for threads, _ in during] == [1] * 5 + [2] * 2
    assert not any(collects for _, collects in during)
    assert after == (2, True)
