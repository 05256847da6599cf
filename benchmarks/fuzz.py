"""Give the wire format, the daemon's socket and the readers of run files what nobody should.

    python benchmarks/fuzz.py --messages 1000000 --coverage 500000 --socket 20000 --files 10000 --json F

Four parts, each left out with 0: spoilt messages against `wire.decode`; the same guided by coverage
(`pip install atheris`; left out where it is absent); spoilt messages and foreign protocols over real sockets
to `mdd serve`, beside a good sender that must not notice; malformed run files against `open_run` and
`verify_run`, in processes that may crash. Everything is refused with a reason, or that is a finding.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measuring import machine
from support.fault_stage import make_source
from support.file_mutations import malformed_files, open_all
from support.hostile_peers import fuzz_socket
from support.mdd_process import Mdd
from support.wire_mutations import Mutator, valid_messages

from microdiffusion import wire
from microdiffusion.errors import WireError

SLOW_S = 0.1
COVERAGE = Path(__file__).with_name("fuzz_coverage.py")


def fuzz_decode(count: int, seed: int) -> dict[str, Any]:
    """Decode spoilt messages as fast as they can be made."""
    mutator = Mutator(seed)
    me = psutil.Process()
    counts: Counter[str] = Counter()
    strange: list[str] = []
    slowest_s = in_decode_s = 0.0
    memory: list[tuple[float, float]] = []
    begin_s = time.perf_counter()
    for number in range(count):
        message = mutator.message()
        started_s = time.perf_counter()
        try:
            wire.decode(message)
        except WireError as error:
            counts[str(error.reason)] += 1
        except Exception as error:  # that is the finding
            counts["foreign error"] += 1
            strange.append(f"{type(error).__name__}: {error} {message!r}"[:500])
        else:
            counts["accepted"] += 1
        took_s = time.perf_counter() - started_s
        in_decode_s += took_s
        slowest_s = max(slowest_s, took_s)
        if number % max(1, count // 100) == 0:
            memory.append((number / 1e6, me.memory_info().rss / 1e6))
    return {
        "messages": count,
        "by_reason": dict(counts),
        "seconds": round(time.perf_counter() - begin_s, 1),
        "decode_us": round(in_decode_s / count * 1e6, 1),
        "slowest_ms": round(slowest_s * 1e3, 1),
        "memory_mb_per_million": round(_slope(memory), 2),
        "strange": strange[:20],
        "well": not strange and slowest_s < SLOW_S,
    }


def fuzz_coverage(runs: int, folder: Path) -> dict[str, Any]:
    """Let atheris look for messages that take new ways through the code."""
    if importlib.util.find_spec("atheris") is None:
        return {"left_out": "atheris is not installed: pip install atheris"}
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, message in enumerate(valid_messages()):
        (corpus / f"{number:02d}").write_bytes(_packed(message))
    result = subprocess.run(
        [sys.executable, COVERAGE, str(corpus), str(runs)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        check=False,
    )
    done = re.findall(r"^#(\d+)\s+DONE\s+cov: (\d+)", result.stderr, flags=re.MULTILINE)
    return {
        "runs": int(done[-1][0]) if done else 0,
        "coverage": int(done[-1][1]) if done else 0,
        "corpus": len(list(corpus.iterdir())),
        "strange": [] if result.returncode == 0 else [result.stderr[-2000:]],
        "well": result.returncode == 0 and bool(done),
    }


def _packed(message: list[bytes]) -> bytes:
    """Return a message as atheris sees it: a byte of choices, the header's size, header, body."""
    body = message[1] if len(message) == 3 else b""
    return bytes([len(message) == 3]) + len(message[0]).to_bytes(2, "little") + message[0] + body


def fuzz_files(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Open malformed run files."""
    place = folder / "files"
    place.mkdir()
    sound = sound_run_file(folder)
    findings = Counter[str]()
    strange: list[tuple[str, str]] = []
    slowest_s, begin_s, left = 0.0, time.monotonic(), count
    while left:
        batch = min(left, 500)
        paths = list(malformed_files(place, sound, batch, seed + left))
        found = open_all(paths, folder, sound)
        findings.update(found.outcomes)
        slowest_s = max(slowest_s, found.slowest_s)
        for name, text in found.strange:
            kept = folder / f"strange-{len(strange):03d}.h5"
            shutil.copy(name, kept)
            strange.append((str(kept), text))
        for path in paths:
            path.unlink()
        left -= batch
    command_line = _verify_by_command(place, sound, seed)
    return {
        "files": count,
        "outcomes": dict(findings),
        "command": command_line,
        "seconds": round(time.monotonic() - begin_s, 1),
        "slowest_s": round(slowest_s, 2),
        "strange": strange[:40],
        "well": not strange and not command_line["strange"],
    }


def sound_run_file(folder: Path) -> Path:
    """Return a small run file as the daemon leaves it."""
    source = make_source(folder / "sources", sweeps=4, edge=32, slices=8)
    output = folder / "sound"
    output.mkdir()
    arguments = ("replay", source.path, "--serve", "--output", output, "--set", "engine.method=linear")
    with Mdd(*arguments, folder=output) as mdd:
        if mdd.finish() != 0:
            raise RuntimeError(mdd.err)
    (path,) = output.glob("*.h5")
    return path


def _verify_by_command(folder: Path, sound: Path, seed: int, count: int = 30) -> dict[str, Any]:
    """Give some files to `mdd verify` itself: an exit code of its own, and never a traceback."""
    codes: Counter[str] = Counter()
    strange = []
    for path in malformed_files(folder, sound, count, seed):
        with Mdd("verify", path, folder=folder) as mdd:
            code = mdd.finish(60)
            codes[str(code)] += 1
            if code not in (0, 2, 3) or "Traceback" in mdd.err + mdd.out:
                strange.append(f"exit {code}: {(mdd.out + mdd.err)[-300:]}")
        path.unlink()
    return {"codes": dict(codes), "strange": strange}


def _slope(samples: list[tuple[float, float]]) -> float:
    """Return the least-squares slope of samples (x, y), without the first fifth."""
    kept = np.array(samples[len(samples) // 5 :])
    return float(np.polyfit(kept[:, 0], kept[:, 1], 1)[0]) if len(kept) > 2 else 0.0


def main() -> int:
    """Fuzz, and print one JSON object; 0 where there is no finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--coverage", type=int, default=500_000)
    parser.add_argument("--socket", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mdd-fuzz-"))
    report: dict[str, Any] = {"machine": machine()}
    if options.messages:
        report["decode"] = fuzz_decode(options.messages, options.seed)
    if options.coverage:
        report["coverage"] = fuzz_coverage(options.coverage, folder)
    if options.socket:
        report["socket"] = fuzz_socket(options.socket, options.seed, folder)
    if options.files:
        report["files"] = fuzz_files(options.files, options.seed, folder)
    well = all(part.get("well", True) for part in report.values())
    text = json.dumps(report, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    if well:
        shutil.rmtree(folder)
    else:
        print(f"findings are kept in {folder}", file=sys.stderr)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
