"""One demo for all tests that only look at what a demo leaves; shared by the workers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from support.demo import demo
from support.mdd_process import Mdd


@dataclass(frozen=True, slots=True)
class FinishedDemo:
    """A demo of three volumes that is over: its folder, what it printed, the processes it left."""

    folder: Path
    weights: str
    exit_code: int
    out: str
    err: str
    orphans: int

    @property
    def run_file(self) -> Path:
        (path,) = (self.folder / "runs").glob("*.h5")
        return path


@pytest.fixture(scope="session")
def finished_demo(weights: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> FinishedDemo:
    """Return what a demo of three volumes left. Look, and leave it as it is."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "finished_demo"
    said = folder / "said.json"
    with FileLock(f"{folder}.lock"):
        if not said.exists():  # the other worker may have been here
            folder.mkdir()
            with Mdd(*demo(weights, folder / "runs", "--volumes", 3), folder=folder) as mdd:
                code = mdd.finish()
                facts = {"exit_code": code, "out": mdd.out, "err": mdd.err, "orphans": len(mdd.orphans())}
            said.write_text(json.dumps({**facts, "weights": weights.name}), encoding="utf-8")
    return FinishedDemo(folder, **json.loads(said.read_text(encoding="utf-8")))
