"""The options of a small demo, as the tests start it."""

from __future__ import annotations

from pathlib import Path

from support.mdd_process import free_port

DEMO = (24, 48, 48)
SMALL = (
    "volume.shape_z=24",
    "camera.width=48",
    "camera.height=48",
    "specimen.nuclei=8",
    "specimen.neurons=1",
)


def settings(*pairs: object) -> list[str]:
    """Return `--set` options."""
    return [word for pair in pairs for word in ("--set", str(pair))]


def engine(weights: Path, **more: object) -> list[str]:
    """Return options of an engine that is quick on one core."""
    keys = {"threads": 1, "inr.cold_steps": 20, "inr.warm_steps": 5} | more
    values = (f"engine.{key}={str(value).lower()}" for key, value in keys.items())
    return settings(f"engine.weights={weights}", *values)


def demo(weights: Path, output: Path, *more: object, interval_s: float = 0.5) -> list[object]:
    """Return the arguments of `mdd` for a demo at ports of its own."""
    ports = [f"wire.{name}=tcp://127.0.0.1:{free_port()}" for name in ("data", "status", "control")]
    pairs = (*SMALL, *ports, f"acquisition.sweep_interval_s={interval_s}")
    return ["serve", "--demo", "--output", output, *engine(weights), *settings(*pairs), *more]
