"""A Micro-Manager that dies or stands still under `mdd serve`, by seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.bridge_trials import play

pytestmark = [
    pytest.mark.acquisition,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]


QUICK = (2, 35)
SEEDS = [*QUICK, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(100) if seed not in QUICK)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_run_is_closed_in_time_with_a_sound_file(seed: int, tmp_path: Path) -> None:
    trial = play(seed, tmp_path / "trial")
    assert trial.problems == (), trial
