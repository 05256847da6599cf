"""A few faults of each sort, played through the real command; `benchmarks/faults.py` plays hundreds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.fault_scenarios import KINDS, play

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and process groups"),
]

PLAYED = (
    *(("kill-daemon", 1), ("kill-driver", 2), ("kill-engine", 3), ("kill-demo-daemon", 1)),
    *(("cut", 1), ("disk-full", 1), ("lost-frames", 1)),
)
"""One of each sort, in under a minute; the rest is for the benchmark."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.mark.acquisition
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), PLAYED, ids=[f"{kind} {seed}" for kind, seed in PLAYED])
def test_a_fault_loses_nothing_that_is_not_in_the_ledger(
    kind: str, seed: int, tmp_path: Path, sources: Path
) -> None:
    outcome = play(kind, seed, tmp_path / "stage", sources, longest_cut_s=3.0)
    assert outcome.problems == (), outcome.facts


def test_every_fault_of_the_list_has_a_scenario() -> None:
    assert set(KINDS) >= {kind for kind, _ in PLAYED}
    assert len(set(KINDS.values())) == len(KINDS)
