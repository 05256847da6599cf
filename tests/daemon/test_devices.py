"""Several devices in one daemon: sessions are spread by what they cost, and move with their state."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors import safe_open
from support.engine_owner import RUN, Owner
from support.recorded_sessions import recorded_sweep
from support.sample_data import header

from microdiffusion.config.engine_tables import EngineConfig, InrConfig
from microdiffusion.daemon.engine import process as engine_process
from microdiffusion.daemon.engine import supervisor
from microdiffusion.daemon.engine.device_process import own_cores
from microdiffusion.daemon.engine.placement import Placement, SessionName, place
from microdiffusion.engines.pipeline.reconstructor import Reconstructor

SETTINGS: dict[str, Any] = {"method": "inr", "inr": InrConfig(cold_steps=3), "threads": 1, "device": "cpu"}
POSITIONS = {"positions": ("here", "there")}


def names(count: int, run: str = "a") -> list[SessionName]:
    return [SessionName(run, 0, position) for position in range(count)]


def loads(costs: dict[SessionName, float], at: dict[SessionName, int], devices: int) -> list[float]:
    found = [0.0] * devices
    for session, device in at.items():
        found[device] += costs[session]
    return found


@pytest.mark.parametrize("devices", [1, 7, 20])
def test_sessions_are_spread_evenly(devices: int) -> None:
    draw = np.random.default_rng(devices)
    costs = dict(zip(names(400), draw.lognormal(sigma=1.0, size=400).tolist(), strict=True))
    found = loads(costs, place(costs, range(devices)), devices)
    assert max(found) < 1.1 * sum(found) / devices


def test_few_sessions_move_and_only_where_the_load_is_uneven() -> None:
    costs = dict.fromkeys(names(40), 1.0)
    even = {name: number % 4 for number, name in enumerate(costs)}
    assert place(costs, range(4), even) == even
    costs[names(1)[0]] = 1.2  # within what is tolerated
    assert place(costs, range(4), even) == even
    # A device that is lost: only its sessions move.
    after = place(costs, (0, 1, 2), even)
    assert {name: device for name, device in after.items() if even[name] != 3} == {
        name: device for name, device in even.items() if device != 3
    }
    # One that comes back gets what evens the load out, and no more.
    again = place(costs, range(4), after)
    moved = [name for name in costs if again[name] != after[name]]
    assert 7 <= len(moved) <= 10
    assert max(loads(costs, again, 4)) <= 1.1 * sum(costs.values()) / 4


def test_one_session_is_never_pushed_to_and_fro() -> None:
    costs = {names(1)[0]: 1.0}
    assert place(costs, range(3), {names(1)[0]: 2}) == {names(1)[0]: 2}


def test_costs_are_measured_and_sessions_move_by_them() -> None:
    placement = Placement()
    sessions = names(4)
    for session in sessions:
        placement.device_of(session, (0, 1))
    at = {session: placement.device_of(session, (0, 1)) for session in sessions}
    assert sorted(at.values()) == [0, 0, 1, 1]
    assert placement.moves((0, 1)) == []
    for step in range(1, 30):  # those on device 0 take three times as long, and come four times as often
        for session in sessions:
            seconds, interval = (0.3, 1.0) if at[session] == 0 else (0.1, 4.0)
            placement.took(session, seconds, step * interval)
    ((session, device),) = placement.moves((0, 1))
    assert (at[session], device) == (0, 1)
    placement.put(session, device)
    assert placement.moves((0, 1)) == []
    placement.forget("a")
    assert placement.device_of(names(1)[0], (1,)) == 1


def test_processes_on_a_cpu_keep_to_cores_of_their_own() -> None:
    try:
        every = psutil.Process().cpu_affinity()
    except AttributeError:
        assert own_cores(0, 2) == ()
        return
    first, second = own_cores(0, 2), own_cores(1, 2)
    assert set(first) | set(second) == set(every)
    assert len(every) == 1 or not set(first) & set(second)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def starter(**config: Any) -> Owner:
        owner = Owner(state=tmp_path / "state", devices=("cpu", "cpu"), backlog=20, **{**SETTINGS, **config})
        owners.append(owner)
        owner.engine.start()
        owner.wait(lambda: len(owner.engine._alive) == 2, 120)
        owner.begin(**POSITIONS)
        return owner

    yield starter
    for owner in owners:
        owner.engine.stop()


def expected(sweeps: int) -> dict[tuple[int, int], Any]:
    """Return the volumes of two sessions that one process made."""
    session = Reconstructor(header(**POSITIONS), EngineConfig(**SETTINGS))
    return {
        (number, position): session.reconstruct(recorded_sweep(number, 0, position)).volume
        for number in range(sweeps)
        for position in range(2)
    }


def submit(owner: Owner, *numbers: int) -> None:
    for number in numbers:
        for position in range(2):
            owner.queue.submit(RUN, recorded_sweep(number, 0, position))


def sweeps_in(state: Path) -> int:
    """Return how many sweeps the session of a checkpoint has seen."""
    with safe_open(state, framework="pt") as file:
        return int(json.loads(file.metadata()["numbers"])["sweeps"])


def assert_as_in_one_process(owner: Owner, sweeps: int) -> None:
    wanted = expected(sweeps)
    made = {(job.sweep_number, job.position): result.volume for job, result in owner.volumes}
    assert owner.lost_jobs == []
    assert made.keys() == wanted.keys()
    assert all(np.array_equal(made[key], wanted[key]) for key in wanted)


@pytest.mark.timeout(300)
def test_devices_share_the_sessions_and_one_that_moves_takes_its_state(
    start: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = start()
    submit(owner, 0, 1)
    assert owner.queue.drain(RUN, 120)
    placement, name = owner.engine._placement, SessionName(RUN, 0, 0)
    home, other = (placement.device_of(SessionName(RUN, 0, position), (0, 1)) for position in range(2))
    assert home != other
    # It has more to do.
    monkeypatch.setattr(engine_process, "_BALANCE_S", 0.0)
    asked = [[(name, other)]]
    monkeypatch.setattr(placement, "moves", lambda alive: asked.pop() if asked else [])
    submit(owner, 2, 3)
    assert owner.queue.drain(RUN, 120)
    assert placement.device_of(name, (0, 1)) == other
    assert any(text.startswith("channel 0, position 0 moves to cpu") for _, text in owner.events)
    assert_as_in_one_process(owner, 4)
    assert owner.engine.restarts == 0


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("given_up", [False, True])
def test_a_device_that_is_lost_moves_its_sessions_with_their_state(
    start: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given_up: bool
) -> None:
    if given_up:
        monkeypatch.setattr(supervisor, "MAX_RESTARTS", 0)
    owner = start(checkpoint_s=0.05)
    submit(owner, 0, 1)
    assert owner.queue.drain(RUN, 120)
    home = owner.engine._placement.device_of(SessionName(RUN, 0, 0), (0, 1))
    state = tmp_path / "state" / RUN / "sweep_c000_p00000.safetensors"
    owner.wait(lambda: state.is_file() and sweeps_in(state) == 2, 120)
    pid = owner.engine.pids[home]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    owner.wait(lambda: home not in owner.engine._alive, 120)
    submit(owner, 2, 3)
    assert owner.queue.drain(RUN, 120)
    assert_as_in_one_process(owner, 4)
    assert any("its sessions go on elsewhere" in text for _, text in owner.events)
    owner.engine.raise_if_failed()
    if given_up:
        assert any(
            "is not used any more, and its sessions go on elsewhere" in text for text in owner.warnings
        )
        assert owner.engine.pids[home] == pid
    else:
        owner.wait(lambda: len(owner.engine._alive) == 2, 120)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_without_any_device_left_the_engine_has_failed(
    start: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 0)
    owner = start()
    for pid in owner.engine.pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(Exception, match="died 1 times"):
        owner.wait(lambda: owner.engine.raise_if_failed() is not None, 120)
