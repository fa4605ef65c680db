"""Collectives of several threads, on devices that hold one until all ranks have come."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, pairwise

import pytest
import torch
from torch import Tensor

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.launch_order import LaunchOrder
from lightning_gnnopt.parallel.ordered_channel import OrderedChannel
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks
from lightning_gnnopt.sampling import NeighborSampler, Topology
from tests.parallel.part_ranks import (
    FANOUTS,
    N,
    asked_by,
    assert_same_batch,
    attribute,
    cut,
    hub_graph,
    owners,
    pipeline,
    run_threads,
)

LANES = ("sampler", "loader")
ITERATIONS = 200


class Device:
    """Does one collective at a time, and keeps it until the other ranks have come to theirs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stuck: str | None = None
        self.launched: list[str] = []


class DeviceChannel:
    """A lane's channel, whose exchanges take a device."""

    def __init__(self, channel: ThreadChannel, device: Device, lane: str) -> None:
        self.rank, self.size, self.traffic = channel.rank, channel.size, channel.traffic
        self._channel, self._device, self._lane = channel, device, lane

    def start(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], *, kind: str = "forward"
    ) -> Callable[[], Tensor]:
        with self._device.lock:
            if self._device.stuck is not None:
                raise threading.BrokenBarrierError  # it never gives up what it waits for, but a test must end
            self._device.launched.append(self._lane)
            try:
                return self._channel.start(rows, send_counts, recv_counts, kind=kind)
            except threading.BrokenBarrierError:
                self._device.stuck = self._lane
                raise

    def sum(self, tensor: Tensor) -> Tensor:
        with self._device.lock:
            return self._channel.sum(tensor)


class LateChannel:
    """A channel for messages that take their time, so that several turns are told in one."""

    def __init__(self, channel: ThreadChannel) -> None:
        self.rank, self.size, self.traffic, self.start = channel.rank, channel.size, channel.traffic, channel.start
        self._channel, self._luck = channel, random.Random(channel.rank)

    def sum(self, tensor: Tensor) -> Tensor:
        time.sleep(self._luck.choice([0.0, 0.001, 0.004]))
        return self._channel.sum(tensor)


class Ranks:
    """Channels of two ranks: one for each lane, and one for messages."""

    def __init__(self, size: int = 2, *, timeout_s: float = 30.0) -> None:
        self.devices = [Device() for _ in range(size)]
        self._ends = {name: ThreadChannel.connected(size, timeout_s=timeout_s) for name in (*LANES, "control")}

    def lane(self, rank: int, lane: str) -> DeviceChannel:
        return DeviceChannel(self._ends[lane][rank], self.devices[rank], lane)

    def order(self, rank: int, **options: float) -> LaunchOrder:
        options = {"timeout_s": 30.0, "heartbeat_s": 0.05, **options}
        return LaunchOrder(
            LateChannel(self._ends["control"][rank]), LANES, on_failure=lambda: self.close(rank), **options
        )

    def close(self, rank: int) -> None:
        for name in LANES:
            self._ends[name][rank].close()


def exchange_in_lanes(lanes: dict[str, Channel], rank: int) -> dict[str, list[int]]:
    """In a thread for each lane, exchange numbers with the other rank, at times nobody can foresee."""
    found: dict[str, list[int]] = {lane: [] for lane in lanes}

    def work(lane: str) -> None:
        luck = random.Random(f"{lane} {rank}")
        for i in range(ITERATIONS):
            time.sleep(luck.choice([0.0, 0.0, 0.001, 0.002]))
            mine = torch.tensor([[1000 * rank + i]] * 2)
            found[lane].append(int(lanes[lane].start(mine, [1, 1], [1, 1])()[1 - rank]))

    run_threads([partial(work, lane) for lane in lanes])
    return found


def test_in_one_order_all_exchanges_come_to_an_end() -> None:
    ranks = Ranks()

    def work(channel: ThreadChannel) -> tuple[dict[str, list[int]], int]:
        rank = channel.rank
        with ranks.order(rank) as order:
            lanes = {lane: OrderedChannel(ranks.lane(rank, lane), order, lane) for lane in LANES}
            found = exchange_in_lanes(dict(lanes), rank)
        return found, order.num_launched

    for rank, (found, num_launched) in enumerate(run_ranks(2, work)):
        other = [1000 * (1 - rank) + i for i in range(ITERATIONS)]
        assert found == {"sampler": other, "loader": other}
        assert num_launched == 2 * ITERATIONS
    first, second = (device.launched for device in ranks.devices)
    assert first == second
    assert len({*pairwise(first)}) == 4  # each lane after itself and after the other one


def test_without_an_order_ranks_wait_for_each_other_for_ever() -> None:
    """The same exchanges at the same times: each rank holds its device for another lane."""
    ranks = Ranks(timeout_s=2.0)

    def work(channel: ThreadChannel) -> None:
        lanes: dict[str, Channel] = {lane: ranks.lane(channel.rank, lane) for lane in LANES}
        exchange_in_lanes(lanes, channel.rank)

    with pytest.raises(threading.BrokenBarrierError):
        run_ranks(2, work)
    assert {device.stuck for device in ranks.devices} == set(LANES)


def test_batches_of_two_threads_are_those_of_one() -> None:
    """A sampler and a loader over parts, on such devices."""
    ranks, edge_index = Ranks(), hub_graph()
    parts = cut(edge_index, owners("random", 2), 2)
    whole, x = NeighborSampler(Topology.from_edge_index(edge_index, N), FANOUTS), attribute()

    def work(channel: ThreadChannel) -> None:
        rank = channel.rank
        luck = random.Random(rank)
        with ranks.order(rank) as order:
            sampling, loading = (OrderedChannel(ranks.lane(rank, lane), order, lane) for lane in LANES)
            asked = asked_by(rank, 12)
            found = pipeline(
                parts[rank], sampling, loading, asked, delay=lambda: time.sleep(luck.choice([0.0, 0.001, 0.003]))
            )
        for (batch, rows), one in zip(found, asked, strict=True):
            assert_same_batch(batch, one, whole)
            assert torch.equal(rows, x[torch.from_numpy(batch.n_id)])

    run_ranks(2, work)
    assert ranks.devices[0].launched == ranks.devices[1].launched


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_thread_ends_the_waiting_of_all(failing: int) -> None:
    """It comes in one lane of one rank, while the other lane and the other rank wait for it."""
    ranks = Ranks()

    def work(channel: ThreadChannel) -> list[str]:
        rank = channel.rank
        messages: dict[str, str] = {}

        def lane_work(lane: str) -> None:
            try:
                for i in range(1_000_000):
                    with order.turn(lane):
                        if (rank, lane, i) == (failing, "loader", 3):
                            raise KeyError("the loader's own")
                        ranks.lane(rank, lane).start(torch.zeros(2, 1), [1, 1], [1, 1])
            except (KeyError, RuntimeError) as error:
                messages[lane] = f"{type(error).__name__}: {error}"

        with pytest.raises(RuntimeError, match="The order of launches has failed"), ranks.order(rank) as order:
            run_threads([partial(lane_work, lane) for lane in LANES])
        return [messages[lane] for lane in LANES]

    found = run_ranks(2, work)
    assert found[failing][1] == 'KeyError: "the loader\'s own"'
    for message in (found[failing][0], *found[1 - failing]):
        assert message.startswith("BrokenBarrierError") or "launches has failed" in message
    assert any("lane 'loader' of rank" in one or f"rank {failing} has failed" in one for one in chain(*found))


def turns(taken: list[list[str]], *, timeouts_s: Sequence[float] = (30.0, 30.0)) -> list[str]:
    """Take turns on each rank, one after the other; what that raises, or nothing."""
    ranks = Ranks()

    def work(channel: ThreadChannel) -> str:
        try:
            with ranks.order(channel.rank, timeout_s=timeouts_s[channel.rank]) as order:
                for lane in taken[channel.rank]:
                    with order.turn(lane):
                        pass
        except RuntimeError as error:
            return str(error)
        return ""

    return run_ranks(len(taken), work)


def test_a_turn_that_does_not_come_is_told() -> None:
    """Rank 1 asks for the loader's turn first; rank 0 has the sampler's first, which no thread of rank 1 comes to."""
    first, second = turns([["sampler", "loader"], ["loader", "sampler"]], timeouts_s=(30.0, 0.5))
    assert "rank 1 has failed" in first
    assert "lane 'loader' of rank 1 waited 0.5 s for its turn behind that of 'sampler', which has not come" in second


def test_a_turn_more_than_rank_0_has_is_told() -> None:
    first, second = turns([["sampler"], ["sampler", "loader"]])
    assert "rank 1 has failed" in first
    assert "lane 'loader' of rank 1 asks for a turn more than rank 0, which has closed" in second


def test_a_turn_less_than_rank_0_has_is_told() -> None:
    first, second = turns([["sampler", "loader"], ["sampler"]])
    assert "rank 1 has failed" in first
    assert "rank 1 has closed without a turn of 'loader' that rank 0 takes" in second


def test_many_lanes_and_no_turn_at_all() -> None:
    """More lanes than a message has room for; and ranks that only begin and end, later than a few heartbeats."""
    lanes = [f"lane {i}" for i in range(40)]

    def work(channel: ThreadChannel) -> int:
        with LaunchOrder(channel, lanes, heartbeat_s=0.01) as order:
            time.sleep(0.1 * channel.rank)

            def take(lane: str) -> None:
                with order.turn(lane):
                    time.sleep(0.001)

            run_threads([partial(take, lane) for lane in lanes])
        with LaunchOrder(channel, lanes, heartbeat_s=0.01):
            pass
        return order.num_launched

    assert run_ranks(3, work) == [40] * 3


def test_a_rank_that_is_gone_ends_the_waiting() -> None:
    """Its messages do not come: the channel's own timeout ends the order's waiting."""

    def work(channel: ThreadChannel) -> str:
        if channel.rank == 1:
            return ""
        order = LaunchOrder(channel, LANES, timeout_s=30.0).start()
        with pytest.raises(RuntimeError) as raised, order.turn("sampler"):
            pass
        return str(raised.value)

    message, _ = run_ranks(2, work, timeout_s=0.3)
    assert "rank 0 could not send or receive the order (BrokenBarrierError" in message


def test_misuse_is_refused() -> None:
    (channel,) = ThreadChannel.connected(1)
    with pytest.raises(ValueError, match=r"`lanes` must be one or more different names, but got \('a', 'a'\)"):
        LaunchOrder(channel, ["a", "a"])
    with pytest.raises(ValueError, match="`heartbeat_s` must be positive, but got 0"):
        LaunchOrder(channel, ["a"], heartbeat_s=0)
    order = LaunchOrder(channel, ["a"], heartbeat_s=0.01)
    with pytest.raises(RuntimeError, match="'a' asks for a turn, but the order is not started"), order.turn("a"):
        pass
    with order:
        with pytest.raises(ValueError, match=r"`lane` must be one of \('a',\), but got 'b'"), order.turn("b"):
            pass
        with pytest.raises(RuntimeError, match="can be started once"):
            order.start()
    with pytest.raises(RuntimeError, match="'a' asks for a turn, but the order is closed"), order.turn("a"):
        pass
    with LaunchOrder(channel, ["a"], heartbeat_s=0.01) as other:
        again = pytest.raises(RuntimeError, match="has a thread in this lane already")
        with other.turn("a"), again, other.turn("a"):
            pass
        assert other.num_launched == 1
