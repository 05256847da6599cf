from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the run file that a recorder makes, in a folder that is not there yet."""
    return tmp_path / "runs" / "run.h5"
