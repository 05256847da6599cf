"""Two minutes of the demo: nothing lost, nothing that grows. An hour of it: `benchmarks/soak.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.soak import soak

from microdiffusion import open_run
from microdiffusion.config.load import load_config
from microdiffusion.engines.memory import reconstruction_bytes

MINUTES = 2.0
"""In the first of them the engine's heap takes the shape that sweeps give it; the slopes are of the rest."""


@pytest.mark.acquisition
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.platform == "win32", reason="stops the daemon with SIGTERM")
def test_the_demo_loses_nothing_and_grows_nowhere(tmp_path: Path) -> None:
    report = soak(tmp_path / "soak", MINUTES, 0.5, every_s=5.0)
    assert report["well"], report
    assert report["frames"] == report["ledger"]["announced"]
    for name in ("daemon", "driver", "engine"):
        # Three standard errors: on a loaded machine this is little to tell a slope by.
        slope, error = (report["memory"][name][f"slope{kind}_mb_per_min"] for kind in ("", "_error"))
        assert slope < 3.0 + 3 * error, (name, report["memory"][name])
    # Sweeps that queue up would be later from one to the next by what the engine is too slow.
    latency = report["latency_s"]
    slope, error = (latency[f"slope{kind}_ms_per_min"] for kind in ("", "_error"))
    assert slope < 1000 * latency["p50"] + 3 * error, latency
    first = min((tmp_path / "soak").glob("*.h5"))
    with open_run(first) as run:
        stated_mb = reconstruction_bytes(run.header, load_config("demo").engine) / 1e6
    assert report["memory"]["engine"]["most_mb"] < stated_mb
