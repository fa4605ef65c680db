"""A rank that ends, hangs or is late: the others end with an error that says so, and soon."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from lightning_gnnopt.parallel.channel import GroupChannel
from lightning_gnnopt.parallel.rank_lost import RankLost
from tests.parallel.lost_ranks import LOST, SIZE, TIMEOUTS_S, WAYS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where ranks have written how it ended, and what their parent has said."""
    folder = tmp_path_factory.mktemp("lost")
    given = ["exchanges,killed,raised", "exchanges,stopped,late", "fit,killed", "fit,raised"]
    command = [sys.executable, "-m", "tests.parallel.lost_ranks", str(folder), *given]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder, done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", TIMEOUTS_S)
def test_the_others_get_an_error_that_says_what_they_waited_for(
    lost: tuple[Path, list[str]], how: str, way: str
) -> None:
    """In time, long before their group would give up; and they can end: gloo does not wait on behind their backs."""
    kind, limit = "sum" if way == "sum" else "backward", TIMEOUTS_S[how]
    for rank in set(range(SIZE)) - {LOST}:
        errors = torch.load(lost[0] / f"{how}-{way}" / f"{rank}.pt", weights_only=False)
        assert len(errors) == 3 or (how == "killed" and errors)  # of one that was killed, rows may have come before
        assert [error[:2] for error in errors] == [(rank, kind)] * len(errors)
        waited_s, message = errors[0][2:]
        assert f"Rank {rank} waited {waited_s:.1f} s for the others in an exchange of the kind '{kind}'" in message
        assert message.endswith("if one is only slow, raise `timeout`.")
        if how in ("killed", "raised"):  # whose connections are closed
            assert waited_s < limit / 2
            assert re.search(r"in vain: (Read error|Connection|Socket|Broken|Write error)", message), message
        else:
            assert limit - 0.5 < waited_s < limit + 30
            assert "timed out" in message.lower(), message


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_who_was_late_finds_the_others_gone(lost: tuple[Path, list[str]], way: str) -> None:
    assert len(torch.load(lost[0] / f"late-{way}" / f"{LOST}.pt", weights_only=False)) == 3
    assert not (lost[0] / f"raised-{way}" / f"{LOST}.pt").exists()


@pytest.mark.slow
def test_the_others_end_by_themselves(lost: tuple[Path, list[str]]) -> None:
    ended = [json.loads(line.removeprefix("ENDED ")) for line in lost[1] if line.startswith("ENDED ")]
    assert ended == [[0] * 2 * len(WAYS) * (SIZE - 1)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", r"process 1 terminated with signal SIGKILL"),
        ("raised", r"Process 1 terminated with the following error:.*ZeroDivisionError: of this rank only"),
    ],
)
def test_a_fit_ends_when_a_process_does(lost: tuple[Path, list[str]], how: str, message: str) -> None:
    """With the error of the first one whose end the launcher sees."""
    fits = [json.loads(line.removeprefix("FIT ")) for line in lost[1] if line.startswith("FIT ")]
    ((_, error, found),) = [fit for fit in fits if fit[0] == how]
    assert error in ("ProcessExitedException", "ProcessRaisedException")
    assert re.search(message + r"|RankLost: Rank 0 waited", found, re.DOTALL), found


@pytest.fixture
def alone(tmp_path: Path) -> object:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_timeout_is_a_number_of_seconds_or_a_timedelta() -> None:
    assert GroupChannel().timeout == timedelta(minutes=1)
    assert GroupChannel(timeout=2.5).timeout == GroupChannel(timeout=timedelta(seconds=2.5)).timeout
    for wrong in (0, -1.0, timedelta(0)):
        with pytest.raises(ValueError, match=r"`timeout` must be positive, but got .*HINT"):
            GroupChannel(timeout=wrong)


@pytest.mark.usefixtures("alone")
def test_a_backend_without_all_to_all_is_found_out() -> None:
    class Without:
        def __getattr__(self, name: str) -> object:
            return getattr(dist.group.WORLD, name)

        def alltoall_base(self, *args: object) -> None:
            raise RuntimeError("Backend mpi does not support alltoall_base")

    channel = GroupChannel()
    channel.group = Without()
    assert channel._probe(torch.ones(1)) is False
    assert GroupChannel()._probe(torch.ones(1)) is True


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("backend", "limit"), [("nccl", None), ("gloo", timedelta(seconds=5))])
def test_the_host_does_not_wait_where_a_stream_does(backend: str, limit: timedelta | None) -> None:
    """With a limit, NCCL's ``wait`` would block the host."""
    waited, elsewhere = [], torch.ones(1, device="meta")
    channel = GroupChannel(timeout=5)
    channel.group = SimpleNamespace(_get_backend=lambda device: SimpleNamespace(name=lambda: backend))
    channel._wait([SimpleNamespace(wait=lambda **given: waited.append(given))], elsewhere, "sum")
    assert waited == [{} if limit is None else {"timeout": limit}]
    options = channel._options(dist.AllreduceOptions(), elsewhere)
    assert options.timeout == (dist.AllreduceOptions().timeout if limit is None else limit)


def test_the_error_can_be_sent_to_another_process() -> None:
    error = RankLost.after(
        RuntimeError("[/a/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1. This is typically ..."),
        rank=2, kind="forward", waited_s=1.25,
    )  # fmt: skip
    assert (error.rank, error.kind, error.waited_s) == (2, "forward", 1.25)
    assert error.reason == "Connection closed by peer [127.0.0.1]:1"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
