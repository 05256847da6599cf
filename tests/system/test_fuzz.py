"""Spoilt messages and malformed files, a few thousand of them; `benchmarks/fuzz.py` takes a million."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.fault_stage import make_source
from support.file_mutations import malformed_files, open_all
from support.hostile_peers import fuzz_socket
from support.mdd_process import Mdd
from support.wire_mutations import Mutator

from microdiffusion import wire
from microdiffusion.errors import WireError

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("messages", [5_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_spoilt_messages_are_refused_with_a_reason_and_soon(messages: int) -> None:
    mutator, reasons, slowest_s = Mutator(0), Counter[str](), 0.0
    for _ in range(messages):
        message = mutator.message()
        begin_s = time.thread_time()
        try:
            wire.decode(message)
        except WireError as error:
            reasons[str(error.reason)] += 1
        slowest_s = max(slowest_s, time.thread_time() - begin_s)
    assert slowest_s < 0.2
    # Each of the checks was reached, or this test says little.
    assert set(reasons) >= {
        *("parts", "header-size", "header", "version", "kind", "size", "checksum", "frame"),
    }


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    source = make_source(folder, sweeps=2, edge=32, slices=8)
    output = folder / "runs"
    arguments = ("replay", source.path, "--serve", "--output", output, "--set", "engine.method=linear")
    with Mdd(*arguments, folder=folder) as mdd:
        assert mdd.finish() == 0, mdd.err
    (path,) = output.glob("*.h5")
    return path


@pytest.mark.parametrize("files", [60, pytest.param(250, marks=pytest.mark.slow)])
def test_malformed_run_files_are_refused_and_take_nothing_down(
    files: int, sound: Path, tmp_path: Path
) -> None:
    findings = open_all([sound, *malformed_files(tmp_path, sound, files, seed=1)], tmp_path, sound)
    assert findings.strange == []
    # The sound one is; most of the others are not; some still open, and what they hold is judged.
    assert findings.outcomes["sound"] >= 1
    assert findings.outcomes["not sound"] > 0.4 * files
    assert findings.outcomes["read: refused"] > 0.4 * files


@pytest.mark.skipif(sys.platform == "win32", reason="the stage of the faults is for POSIX")
@pytest.mark.slow
def test_hostile_peers_do_not_disturb_a_good_sender(tmp_path: Path) -> None:
    report = fuzz_socket(1500, 0, tmp_path)
    assert report["strange"] == []
    assert sum(report["answers_by_reason"].values()) > 100
    assert {"unknown-run", "version", "checksum"} <= set(report["answers_by_reason"])
