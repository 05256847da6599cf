"""Part files: what was put in comes out, in time, and a damaged one is refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from microdiffusion.daemon.offline.parts import Made, read_about, read_part, write_part
from microdiffusion.daemon.offline.sweeps import SweepKey
from microdiffusion.errors import DamagedError
from microdiffusion.frames import Confidence, Drift, Reconstruction

ABOUT = {"device": "cpu", "weights": "µ"}


def made() -> list[Made]:
    """Return sweeps backward in time, as a session made both ways yields them; one has no volume."""
    dice = np.random.default_rng(0)
    full = Reconstruction(
        volume=dice.normal(size=(3, 4, 5)).astype(np.float32)[:, ::-1],  # not contiguous
        served="blend",
        residual=np.array(1.25),  # type: ignore[arg-type]
        candidate_errors={"mdd": 0.1, "inr": float("inf")},
        drift=Drift(0.1, -0.2, 0.3),
        confidence=Confidence(),
        uncertainty=dice.normal(size=(3, 4, 5)).astype(np.float32),
        age=np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
        slots=np.arange(3),
        alarms={"dark": "a line\nand another"},
    )
    bare = Reconstruction(volume=np.zeros((3, 4, 5), np.float32), served="inr", residual=1.0)
    empty = Reconstruction(
        volume=np.ones((3, 4, 5), np.float32), served="inr", residual=1.0, slots=np.empty(0, np.int64)
    )
    return [
        (SweepKey(10, 1, 2), full, 3.5),
        (SweepKey(9, 1, 2), None, float("nan")),
        (SweepKey(8, 1, 2), bare, float("nan")),
        (SweepKey(2, 1, 2), empty, 1.0),
    ]


def test_what_was_put_in_comes_out_in_time(tmp_path: Path) -> None:
    write_part(tmp_path / "a.part", iter(made()), ABOUT)
    assert read_about(tmp_path / "a.part") == ABOUT
    found = list(read_part(tmp_path / "a.part"))
    wanted = [each for each in reversed(made()) if each[1] is not None]
    assert [key for key, _, _ in found] == [key for key, _, _ in wanted]
    for (_, one, when), (_, other, then) in zip(found, wanted, strict=True):
        np.testing.assert_equal(when, then)
        assert asdict(one).keys() == asdict(other).keys()
        for name, right in asdict(other).items():
            left = asdict(one)[name]
            np.testing.assert_equal(left, right, err_msg=name)
            if isinstance(right, np.ndarray) and right.ndim:
                assert left.dtype == right.dtype


@pytest.mark.parametrize("left", [0, 5, 100, -1, -8, -40])
def test_a_damaged_part_is_refused(left: int, tmp_path: Path) -> None:
    write_part(tmp_path / "a.part", iter(made()), ABOUT)
    content = (tmp_path / "a.part").read_bytes()
    (tmp_path / "a.part").write_bytes(content[:left])
    with pytest.raises(DamagedError, match=r"a\.part cannot be read .*remove it"):
        list(read_part(tmp_path / "a.part"))
    with pytest.raises(DamagedError):
        read_about(tmp_path / "a.part")
    with pytest.raises(DamagedError):
        list(read_part(tmp_path / "absent.part"))
