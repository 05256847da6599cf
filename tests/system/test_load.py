"""Ten seconds of the load that benchmarks/load.py keeps up for ten minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from load import Latencies, run_load, slope_mb_per_min


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


def test_a_slope_leaves_the_beginning_out() -> None:
    samples = [(float(at_s), 1, int(1e6 * (100 + min(at_s, 60) + 3.0 * at_s / 60))) for at_s in range(300)]
    assert slope_mb_per_min(samples) == pytest.approx(3.0)


def test_latencies_are_counted_in_bins_of_a_few_per_cent() -> None:
    latencies = Latencies()
    for milliseconds in range(1, 1001):
        latencies.add(1e-3 * milliseconds)
    assert latencies.quantile_ms(0.5) == pytest.approx(500, rel=0.07)
    assert latencies.quantile_ms(1.0) == pytest.approx(1000, rel=0.07)
