"""Sessions: each lane has its own, idle ones go to disk and come back as they were, crashes cost little."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.engine_owner import RUN, Owner
from support.sample_data import SHAPE, header, specimen, sweep_of

from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.config.models import EngineConfig
from microdiffusion.daemon.engine.device_process import forget_stale
from microdiffusion.engines.memory import memory_statement, reconstruction_bytes, session_bytes, state_bytes
from microdiffusion.engines.pipeline.engine import open_engine
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.pipeline.session_store import SessionKey, SessionStore
from microdiffusion.frames import Reconstruction, Sweep

INR = InrConfig(cold_steps=4, warm_steps=2)


def configure(trained: Path, **changes: Any) -> EngineConfig:
    values: dict[str, Any] = {"weights": trained, "device": "cpu", "threads": 1, "inr": INR}
    return EngineConfig(**{**values, "memory": "session", **changes})


@pytest.fixture(scope="module")
def sweeps() -> list[Sweep]:
    return [sweep_of(specimen(drift=0.05 * number), number, seed=number) for number in range(6)]


def on_channel(sweep: Sweep, channel: int) -> Sweep:
    return Sweep(
        sweep.sweep,
        channel,
        0,
        sweep.stage,
        sweep.projections * (1.0 + 0.1 * channel),
        sweep.held_out_stage,
        sweep.held_out * (1.0 + 0.1 * channel),
    )


def same(one: Reconstruction, other: Reconstruction) -> bool:
    return (
        np.array_equal(one.volume, other.volume)
        and (one.served, one.inr_iterations, one.merged, one.network_weight)
        == (other.served, other.inr_iterations, other.merged, other.network_weight)
        and one.residual == other.residual
    )


def in_memory(store: SessionStore) -> list[int]:
    return [channel for channel in range(3) if store.peek(SessionKey(RUN, channel, 0, "sweep")) is not None]


def test_a_session_that_was_put_aside_goes_on_as_if_it_had_not_been(
    weights: Path, sweeps: list[Sweep], tmp_path: Path
) -> None:
    config = configure(weights)
    engine = open_engine(config)
    store = SessionStore(tmp_path / "state", most_bytes=1)  # room for the one in use
    tight = Reconstructor(header(channels=("a", "b", "c")), config, engine, sessions=store)
    roomy = Reconstructor(header(channels=("a", "b", "c")), config, engine)
    merged = 0
    for sweep in sweeps:
        for channel in range(3):
            one = on_channel(sweep, channel)
            expected = roomy.reconstruct(one)
            assert same(tight.reconstruct(one), expected)
            assert in_memory(store) == [channel]
            merged += expected.merged
    assert merged > 0
    store.close()


def test_a_new_process_goes_on_from_the_checkpoint(
    weights: Path, sweeps: list[Sweep], tmp_path: Path
) -> None:
    config = configure(weights)
    engine = open_engine(config)
    store = SessionStore(tmp_path)
    first = Reconstructor(header(), config, engine, sessions=store)
    for sweep in sweeps[:3]:
        first.reconstruct(sweep)
    assert store.dirty
    store.checkpoint()
    assert not store.dirty
    expected = first.reconstruct(sweeps[3])
    store.close()
    (tmp_path / RUN / "sweep_c000_p00000.safetensors").rename(tmp_path / "later")
    # The checkpoint before the fourth sweep is what another process finds.
    again = SessionStore(tmp_path / "again")
    early = Reconstructor(header(), config, engine, sessions=again)
    for sweep in sweeps[:3]:
        early.reconstruct(sweep)
    again.close()
    second = Reconstructor(header(), config, engine, sessions=SessionStore(tmp_path / "again"))
    assert same(second.reconstruct(sweeps[3]), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="posix permissions")
def test_only_this_user_can_read_what_is_put_aside(
    weights: Path, sweeps: list[Sweep], tmp_path: Path
) -> None:
    store = SessionStore(tmp_path / "state")
    config = configure(weights, method="inr")
    Reconstructor(header(), config, sessions=store).reconstruct(sweeps[0])
    store.close()
    for folder in (tmp_path / "state", tmp_path / "state" / RUN):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "state" / RUN).iterdir()] == ["sweep_c000_p00000.safetensors"]


@given(where=st.floats(0, 1), kind=st.sampled_from(["cut", "flip", "empty", "other"]), bit=st.integers(0, 7))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_checkpoint_is_as_good_as_none_or_as_it_was(
    where: float, kind: str, bit: int, saved: tuple[Path, EngineConfig, Sweep]
) -> None:
    path, config, sweep = saved
    good = path.read_bytes()
    place = int(where * (len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= 1 << bit
    path.write_bytes({"cut": good[:place], "flip": bytes(bad), "empty": b"", "other": b"\0" * 100}[kind])
    try:
        result = Reconstructor(header(), config, sessions=SessionStore(path.parents[1])).reconstruct(sweep)
        assert result.volume.shape == SHAPE
    finally:
        path.write_bytes(good)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineConfig, Sweep]:
    folder = tmp_path_factory.mktemp("state")
    config = EngineConfig(method="inr", device="cpu", threads=1, inr=INR, memory="sweep")
    store = SessionStore(folder)
    Reconstructor(header(), config, sessions=store).reconstruct(sweep_of(specimen(), 0))
    store.close()
    (path,) = (folder / RUN).iterdir()
    return path, config, sweep_of(specimen(), 1)


def test_another_geometry_starts_cold(weights: Path, sweeps: list[Sweep], tmp_path: Path) -> None:
    config = configure(weights, method="inr")
    store = SessionStore(tmp_path)
    Reconstructor(header(), config, sessions=store).reconstruct(sweeps[0])
    store.close()
    small = (24, 16, 16)
    result = Reconstructor(header(shape=small), config, sessions=SessionStore(tmp_path)).reconstruct(
        sweep_of(specimen(shape=small), 1)
    )
    assert result.volume.shape == small


def test_a_run_that_is_over_leaves_nothing(weights: Path, sweeps: list[Sweep], tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    config = configure(weights, method="inr")
    for run in ("a" * 32, "b" * 32):
        Reconstructor(header(run_id=run), config, sessions=store).reconstruct(sweeps[0])
    store.checkpoint()
    store.forget("a" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["b" * 32]
    assert store.peek(SessionKey("a" * 32, 0, 0, "sweep")) is None
    assert store.peek(SessionKey("b" * 32, 0, 0, "sweep")) is not None
    store.close()


def test_state_that_nobody_went_on_with_goes_after_a_week(tmp_path: Path) -> None:
    old, new = tmp_path / ("a" * 32), tmp_path / ("b" * 32)
    for folder in (old, new):
        folder.mkdir()
        (folder / "sweep_c000_p00000.safetensors").touch()
    week_ago_s = time.time() - 8 * 86400
    os.utime(old, (week_ago_s, week_ago_s))
    forget_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [new]
    forget_stale(tmp_path / "not there")


def test_rolling_and_catching_up_do_not_touch_the_sweeps_volumes(weights: Path, sweeps: list[Sweep]) -> None:
    config = configure(weights)
    engine = open_engine(config)
    alone, busy = (Reconstructor(header(), config, engine) for _ in range(2))
    for number, sweep in enumerate(sweeps):
        expected = alone.reconstruct(sweep)
        assert same(busy.reconstruct(sweep), expected)
        busy.reconstruct(window(sweeps, number), lane="rolling")
        busy.reconstruct(sweeps[-1 - number], lane="later")


def window(sweeps: list[Sweep], number: int) -> Sweep:
    """Return the newest sweep's worth of projections in the middle of sweep `number` + 1."""
    if number + 1 == len(sweeps):
        return sweeps[number]
    old, new = sweeps[number], sweeps[number + 1]
    stage = old.stage[2:] + new.stage[:2]
    pixels = np.concatenate([old.projections[2:], new.projections[:2]])
    order = stage.order()
    return Sweep(new.sweep, 0, 0, stage[order], pixels[order], stage[:0], pixels[:0])


def test_a_rolling_volume_goes_by_what_the_sweeps_found_about_the_network(
    weights: Path, sweeps: list[Sweep]
) -> None:
    config = configure(weights)
    run = Reconstructor(header(), config)
    served = [run.reconstruct(sweep) for sweep in sweeps[:2]][-1]
    assert served.network_weight < 1.0  # this network knows nothing
    rolling = run.reconstruct(window(sweeps, 1), lane="rolling")
    assert rolling.network_weight <= served.network_weight
    assert rolling.inr_iterations <= INR.cold_steps


@pytest.mark.parametrize(
    ("effort", "evaluations"), [(0, 3), (1, 1), (2, 0)], ids=["full", "one evaluation", "no network"]
)
def test_less_effort_asks_the_network_less(
    effort: int, evaluations: int, weights: Path, sweeps: list[Sweep]
) -> None:
    config = configure(weights, steps=3, memory="sweep", fallback=False)
    engine = open_engine(config)
    asked: list[int] = []
    runtime = engine.runtime
    assert runtime is not None

    class Counter:
        device, multiple, capturable, name = runtime.device, runtime.multiple, False, runtime.name

        def __call__(self, *inputs: Any) -> Any:
            asked.append(1)
            return runtime(*inputs)

    object.__setattr__(engine, "runtime", Counter())
    result = Reconstructor(header(), config, engine).reconstruct(sweeps[0], effort=effort)
    assert result.effort == effort
    assert (result.runtime == "") == (effort == 2)
    once = len(asked) / max(evaluations, 1)
    asked.clear()
    Reconstructor(header(), config.model_copy(update={"steps": 1}), engine).reconstruct(sweeps[0])
    assert once == (len(asked) if evaluations else 0)


def test_a_method_without_a_network_knows_one_effort(sweeps: list[Sweep]) -> None:
    config = EngineConfig(method="linear", device="cpu", threads=1)
    results = [Reconstructor(header(), config).reconstruct(sweeps[0], effort=effort) for effort in (0, 2)]
    assert same(*results)
    assert [result.effort for result in results] == [0, 0]


def test_settings_change_between_two_sweeps_and_sessions_stay_warm(
    weights: Path, sweeps: list[Sweep]
) -> None:
    config = configure(weights, memory="sweep", fallback=False)
    engine = open_engine(config)
    run = Reconstructor(header(), config, engine)
    run.reconstruct(sweeps[0])
    run.configure(config.model_copy(update={"steps": 2}))
    changed = run.reconstruct(sweeps[1])
    other = Reconstructor(header(), config.model_copy(update={"steps": 2}), engine)
    other.reconstruct(sweeps[0])
    assert same(changed, other.reconstruct(sweeps[1]))


def kept_sweeps(file: Path) -> int:
    """Return how many sweeps the session had seen when its state was put on the disk; 0: not there yet."""
    if not file.is_file():
        return 0
    with safe_open(file, framework="np") as state:
        return int(json.loads(state.metadata()["numbers"])["sweeps"])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_engine_goes_on_warm(weights: Path, sweeps: list[Sweep], tmp_path: Path) -> None:
    owner = Owner(
        method="mdd",
        weights=weights,
        backlog=9,
        inr=InrConfig(cold_steps=4, warm_steps=1),
        checkpoint_s=0.05,
        state=tmp_path / "state",
    )
    file = tmp_path / "state" / RUN / "sweep_c000_p00000.safetensors"
    owner.begin()
    owner.engine.start()
    try:
        owner.submit(sweeps[0], sweeps[1])
        owner.wait(lambda: owner.done == [0, 1])
        owner.wait(lambda: kept_sweeps(file) == 2)
        pid = owner.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        owner.submit(sweeps[2])
        assert owner.queue.drain(RUN, 60)
        assert [result.merged for _, result in owner.volumes] == [False, True, True]
        owner.queue.end(RUN)
        owner.wait(lambda: not file.parent.exists())
    finally:
        owner.engine.stop()


def test_memory_of_sessions_is_bounded_and_said() -> None:
    config = EngineConfig(session_memory_mb=100, memory="sweep")
    one = header(shape=(64, 256, 256))
    many = header(shape=(64, 256, 256), channels=("a", "b"), positions=tuple("0123456789"))
    assert session_bytes(one, config) == 64 * 256 * 256 * 4
    assert state_bytes([many], config) == 100_000_000
    assert reconstruction_bytes(many, config, one) - reconstruction_bytes(one, config) < 100_000_000
    assert "21 sessions" in memory_statement([one, many], config)


CHILD = """
    import sys
    import numpy as np
    from support.sample_data import header, specimen, sweep_of
    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.memory import reconstruction_bytes
    from microdiffusion.engines.pipeline import Reconstructor
    from microdiffusion.engines.pipeline.session_store import SessionKey, SessionStore
    from pathlib import Path

    config = EngineConfig(device="cpu", threads=1, session_memory_mb=10, method="mdd", runtime="torch")
    shape = (32, 128, 128)
    run = header(shape=shape, positions=tuple(str(n) for n in range(12)), frames_per_sweep=8)
    store = SessionStore(Path(sys.argv[1]), int(config.session_memory_mb * 1e6))
    reconstructor = Reconstructor(run, config, sessions=store)
    for number in range(3):
        sweep = sweep_of(specimen(shape=shape), number)
        for position in range(12):
            sweep.position = position
            reconstructor.reconstruct(sweep)
    assert store.nbytes <= 10e6, store.nbytes
    keys = [SessionKey(run.run_id, 0, position, "sweep") for position in range(12)]
    assert sum(store.peek(key) is None for key in keys) >= 10  # in turn, so that each has to come back
    with open("/proc/self/status", encoding="ascii") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    print(peak, reconstruction_bytes(run, config))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_said_of_the_memory_is_true(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    answer = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "state")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    peak, said = map(int, answer.stdout.split())
    assert 0.3 * said < peak < said
