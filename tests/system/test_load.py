"""Ten seconds of the load that benchmarks/load.py keeps up for ten minutes."""

from __future__ import annotations

import pytest
from support.load import run_load


@pytest.mark.slow
def test_500_frames_a_second_are_taken_without_loss_or_growth() -> None:
    result = run_load("sink", seconds=10.0, report_s=0.25)
    assert (result["announced"], result["received"], result["lost"]) == (5000, 5000, 0)
    assert (result["sweeps"], result["sweeps_lost"], result["refused"]) == (125, 0, {})
    assert result["sender"]["acknowledged"] == 5000
    assert result["sender"]["frames_per_s"] > 490
    assert result["sender"]["resent"] == 0
    # Ten seconds say little of a slope, but frames that stay would be 2.6 GB.
    assert result["rss_mb"]["most"] < 600
