"""Real fits, tiny ones; the one with a validation process is in `test_quick.py`."""

from __future__ import annotations

import lightning as L
import pytest

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.studies.pipeline import fits
from lightning_gnnopt.studies.pipeline.fits import Fit, run_fit
from lightning_gnnopt.studies.pipeline.loaders import our_batches
from lightning_gnnopt.studies.pipeline.settings import Setting


def fitted(*, num_workers: int = 0, seed: int = 0) -> Fit:
    data = load_dataset("dcsbm", num_nodes=400, num_features=8, avg_degree=6)
    setting = Setting(sampler="neighbor", batch_size=50, hidden=8, heads=None, layers=2, rounds=1)
    datamodule = our_batches(
        data, setting, fanout=5, clusters_per_batch=2, passes=2, num_workers=num_workers, seed=seed
    )
    L.seed_everything(seed, verbose=False)
    module = NodeClassifier("gcn", in_channels=8, out_channels=int(data.y.max()) + 1, hidden_channels=8)
    return run_fit(module, datamodule, epochs=3, beside=False)


def test_prefetching_trains_to_the_same_bits() -> None:
    inline, prefetched, other = fitted(), fitted(num_workers=1), fitted(seed=1)
    assert inline.losses == prefetched.losses != other.losses
    assert inline.val_losses == prefetched.val_losses
    assert len(inline.val_losses) == 3


def test_stages_of_an_epoch_add_up() -> None:
    found = fitted()
    assert (len(found.epochs_s), found.steady_s, found.startup_s) == (3, found.epochs_s[1:], 0.0)
    stages = found.stages
    assert stages is not None
    assert (stages.train_batches, stages.val_batches) == (4, 2)
    assert min(stages.train_prepare_s, stages.train_compute_s, stages.val_prepare_s, stages.val_compute_s) > 0
    # Medians of two epochs are their means, so the stages are the whole.
    assert stages.epoch_s == pytest.approx(sum(found.steady_s) / 2)
    assert sum(found.epochs_s) < found.fit_s
    assert found.cpu_s > 0


def test_epochs_after_the_first_verdict_are_steady() -> None:
    clock = fits._Clock()
    clock._marks_s, clock._cpu_s = [0.0, 1.0, 2.0, 6.0, 8.0], [0.0, 0.5, 1.0, 4.0, 5.0]
    clock._losses = [fits.torch.tensor(0.5)]
    found = clock.result(9.0, 1.5, (1.0,))
    assert (found.steady_s, found.startup_s, found.stages) == ((4.0, 2.0), 1.5, None)
    assert (found.epoch_s, found.cpu_s) == (3.0, 2.0)
    with pytest.raises(RuntimeError, match=r"after the last of 4 epochs had begun\. HINT: more `pipeline\.epochs`"):
        clock.result(9.0, 7.0, (1.0,))
