"""Doubt of the covariances: from errors that are everywhere, not from changes in a few places."""

from __future__ import annotations

import pytest
import torch

from microdiffusion.engines.inr.changes import _doubt


def doubt(times: float = 1.0, changed: float = 0.0, faded: float = 0.0, before: float = 1.0) -> float:
    """Return the doubt of deviates whose squares are so many times too large, some of them changed."""
    ratios = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * times**0.5 - faded
    ratios[: int(changed * 5000)] += 30.0
    return _doubt(ratios[torch.randperm(5000)], torch.ones(5000), before)


def test_covariances_that_hold_are_not_doubted() -> None:
    assert doubt() == pytest.approx(1.0, abs=0.1)
    assert doubt(0.01) == 1.0


def test_errors_that_are_everywhere_are_doubted_by_their_size() -> None:
    assert doubt(1.8) == pytest.approx(1.8, rel=0.1)


def test_changes_in_a_few_places_are_no_doubt() -> None:
    assert doubt(changed=0.05) < 1.3


def test_what_fades_everywhere_is_no_doubt() -> None:
    assert doubt(faded=50.0) == pytest.approx(1.0, abs=0.1)


def test_doubt_grows_slowly_and_within_limits() -> None:
    assert doubt(100.0) == 2.0
    assert doubt(100.0, before=2.0) == 3.0


def test_too_few_places_change_no_doubt() -> None:
    assert _doubt(torch.ones(5), torch.ones(5), 1.7) == 1.7
