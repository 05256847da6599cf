"""Doubt of the covariances: from errors that are everywhere, not from changes in a few places."""

from __future__ import annotations

import pytest
import torch

from microdiffusion.engines.inr.changes import _doubt


def squares(times: float = 1.0, changed: float = 0.0) -> torch.Tensor:
    """Return squared normal deviates, so many times too large, a share of them changed altogether."""
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0)).square() * times
    noise[: int(changed * 5000)] += 1000.0
    return noise[torch.randperm(5000, generator=torch.Generator().manual_seed(1))]


def test_covariances_that_hold_are_not_doubted() -> None:
    assert _doubt(squares(), 1.0) == pytest.approx(1.0, abs=0.1)
    assert _doubt(squares(0.01), 1.0) == 1.0


def test_errors_that_are_everywhere_are_doubted_by_their_size() -> None:
    assert _doubt(squares(1.8), 1.0) == pytest.approx(1.8, rel=0.1)


def test_changes_in_a_few_places_are_no_doubt() -> None:
    assert _doubt(squares(changed=0.05), 1.0) < 1.3


def test_doubt_grows_slowly_and_within_limits() -> None:
    assert _doubt(squares(100.0), 1.0) == 2.0
    assert _doubt(squares(100.0), 3.0) == 4.0


def test_too_few_places_change_no_doubt() -> None:
    assert _doubt(squares()[:5], 1.7) == 1.7
