from __future__ import annotations

import re
import threading
from collections import Counter

import pytest
import torch

from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import stage_log
from lightning_gnnopt.loading.stage_log import StageLog, StageSpan, note_stage, record_stages


def make_datamodule(num_workers: int) -> GraphDataModule:
    datamodule = GraphDataModule(
        load_dataset("digits-knn"), num_neighbors=[4, 4], batch_size=256, num_workers=num_workers, seed=3
    )
    datamodule.setup("fit")
    return datamodule


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_batch_has_its_stages_in_order_in_one_thread(num_workers: int) -> None:
    loader = make_datamodule(num_workers).train_dataloader()
    with record_stages() as log:
        batches = list(loader)
    assert stage_log._logs == ()
    prepared = [span for span in log.spans if span.stage != "wait"]
    assert Counter(span.stage for span in prepared) == dict.fromkeys(("sample", "plan", "slice"), len(batches))
    for number in range(len(batches)):
        sample, plan, slice_ = (span for span in prepared if span.batch == number)
        assert (sample.stage, plan.stage, slice_.stage) == ("sample", "plan", "slice")
        assert sample.start_s <= sample.end_s == plan.start_s <= plan.end_s <= slice_.start_s <= slice_.end_s
        assert len({span.thread for span in (sample, plan, slice_)}) == 1
    waits = [span for span in log.spans if span.stage == "wait"]
    assert [span.batch for span in waits] == [-1] * len(batches)
    assert {span.thread for span in waits} == {threading.current_thread().name}
    assert ({span.thread for span in prepared} == {threading.current_thread().name}) == (num_workers == 0)
    # what is counted is what is logged
    stats = loader.stats
    assert stats.sample_s == pytest.approx(sum(s.end_s - s.start_s for s in prepared if s.stage == "sample"))
    assert stats.slice_s == pytest.approx(sum(s.end_s - s.start_s for s in prepared if s.stage in ("plan", "slice")))
    assert stats.wait_s == pytest.approx(sum(span.end_s - span.start_s for span in waits))


def test_batches_are_the_same_bits_while_somebody_records() -> None:
    plain = list(make_datamodule(2).train_dataloader())
    with record_stages():
        recorded = list(make_datamodule(2).train_dataloader())
    for mine, theirs in zip(recorded, plain, strict=True):
        assert torch.equal(mine.x, theirs.x)
        assert torch.equal(mine.edge_index, theirs.edge_index)


def test_recordings_may_overlap_and_each_has_what_fell_into_it() -> None:
    outer, inner = record_stages(), record_stages()
    first = outer.__enter__()
    note_stage("sample", 1, 0.0, 1.0)
    second = inner.__enter__()
    note_stage("slice", 2, 1.0, 2.0)
    outer.__exit__(None, None, None)
    note_stage("plan", 3, 2.0, 3.0)
    inner.__exit__(None, None, None)
    note_stage("plan", 4, 3.0, 4.0)
    assert [span.batch for span in first.spans] == [1, 2]
    assert [span.batch for span in second.spans] == [2, 3]
    assert stage_log._logs == ()


def test_only_the_last_are_kept() -> None:
    log = StageLog(max_spans=2)
    for number in range(5):
        log.add(StageSpan("sample", number, "a", 0.0, 1.0))
    assert [span.batch for span in log.spans] == [3, 4]
    assert log.recorded == 5


def test_an_error_ends_the_recording() -> None:
    with pytest.raises(KeyError), record_stages():
        raise KeyError
    assert stage_log._logs == ()


def test_a_log_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("`max_spans` must be at least 1, but got 0.")), record_stages(0):
        pass
