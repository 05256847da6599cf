"""Run files that are not what they should be, and a process that opens them and tells what happened.

    python file_mutations.py LIST        opens each file that LIST names, one line of JSON for each

Each is read, verified, repaired as `mdd repair` does, and read again.

HDF5 is C: a strange file may take its process down. So the files are opened in a process of their own, and
`open_all` starts another one behind the file that was the last of the one before.
"""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HANG_S = 60.0  # on a machine with much else to do; HDF5 waits for ever where it waits


def malformed_files(folder: Path, sound: Path, count: int, seed: int) -> Iterator[Path]:
    """Yield `count` files in a folder, each made of the bytes or of the objects of a sound run file."""
    dice = random.Random(seed)  # noqa: S311
    whole = sound.read_bytes()
    for number in range(count):
        path = folder / f"{number:05d}.h5"
        way = dice.random()
        if way < 0.75:
            path.write_bytes(_bytes_spoilt(dice, whole))
        elif way < 0.78:
            _foreign(dice, path)
        else:
            path.write_bytes(whole)
            with suppress(Exception):  # what HDF5 refuses to write is not there to be read
                _objects_spoilt(dice, path)
        yield path


def _bytes_spoilt(dice: random.Random, whole: bytes) -> bytes:
    way = dice.randrange(8)
    if way == 0:
        return whole[: dice.randrange(len(whole))]
    if way == 1:
        return whole[: dice.choice((0, 1, 8, 48, 96, 512, 2048, 4096))]
    if way == 2:
        return dice.randbytes(dice.choice((0, 10, 5000)))
    spoilt = bytearray(whole)
    # Most of a file are images; what HDF5 itself reads lies at the start and, in part, at the end.
    reach = min(len(spoilt), dice.choice((96, 1024, 16_384, 65_536, len(spoilt))))
    for _ in range(dice.choice((1, 1, 4, 30))):
        at = dice.randrange(reach)
        if way == 3:
            spoilt[at] ^= 1 << dice.randrange(8)
        elif way == 4:
            spoilt[at] = dice.choice((0, 1, 127, 128, 255))
        elif way == 5:
            size = dice.choice((2, 4, 8))
            number = dice.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), len(whole), len(whole) + 1))
            spoilt[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
        elif way == 6:
            spoilt[at : at + dice.choice((8, 64, 4096))] = b""
        else:
            size = dice.choice((8, 64, 512))
            start = dice.randrange(reach)
            spoilt[at : at + size] = spoilt[start : start + size]
    return bytes(spoilt)


def _foreign(dice: random.Random, path: Path) -> None:
    """Another program's HDF5 file, of any version, some of them with names that a run file has."""
    version = dice.choice((None, ("earliest", "v108"), ("v110", "v110"), "latest"))
    with h5py.File(path, "w", libver=version, userblock_size=dice.choice((0, 0, 512))) as file:
        for name in dice.sample(("volume", "mdd/status", "mdd/crc32", "projections", "images/1", "t0"), 3):
            shape = dice.choice(((), (4,), (4, 6, 72, 80)))
            file.create_dataset(name, shape, dice.choice(("u1", "<u2", "f8")))
        if dice.random() < 0.5:
            file.attrs["mdd_layout"] = dice.choice(("1.0", "1.9", "2.0", "0.9", "one"))
            file.attrs["storage"] = dice.choice(("static", "chunked", "swmr", "none"))


def _objects_spoilt(dice: random.Random, path: Path) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(dice.choice((1, 1, 2, 5))):
            dice.choice(_OBJECT_WAYS)(dice, file, dice.choice(names))


def _delete(dice: random.Random, file: h5py.File, name: str) -> None:
    del file[name]


def _replace(dice: random.Random, file: h5py.File, name: str) -> None:
    shape = getattr(file[name], "shape", (3,))
    del file[name]
    dtype = dice.choice(("u1", "f4", "f8", "S5", "i8", "O", ">u2"))
    if dice.random() < 0.5:
        shape = tuple(max(0, size + dice.choice((-1, 0, 1))) for size in shape)
    kind = h5py.string_dtype() if dtype == "O" else dtype
    if int(np.prod(shape, dtype=np.int64)) < 1 << 22:
        options = {"compression": "gzip"} if shape and dice.random() < 0.3 else {}
        file.create_dataset(name, shape, kind, **options)


def _fill(dice: random.Random, file: h5py.File, name: str) -> None:
    """Strange values where the layout is right: statuses, ledgers, times, texts that nobody writes."""
    target = file[name]
    if not isinstance(target, h5py.Dataset) or target.size > 1 << 20:
        return
    noise = np.frombuffer(dice.randbytes(target.size * target.dtype.itemsize), np.uint8)
    if target.dtype.kind == "S":
        target[...] = np.frombuffer(noise.tobytes(), f"S{target.dtype.itemsize}").reshape(target.shape)
    else:
        target[...] = noise.view(target.dtype).reshape(target.shape)


def _flip(dice: random.Random, file: h5py.File, name: str) -> None:
    """One bit of one number; of images as well."""
    target = file[name]
    if isinstance(target, h5py.Dataset) and target.size and target.dtype.kind in "uif":
        at = tuple(dice.randrange(size) for size in target.shape)
        value = np.array([target[at]]).view(np.uint8)
        value[dice.randrange(value.size)] ^= 1 << dice.randrange(8)
        target[at] = value.view(target.dtype)[0]


def _link(dice: random.Random, file: h5py.File, name: str) -> None:
    links = (
        *(h5py.SoftLink("/"), h5py.SoftLink(f"/{name}"), h5py.SoftLink("/nowhere")),
        *(h5py.ExternalLink("nowhere.h5", "/x"), h5py.ExternalLink("/etc/passwd", "/volume")),
    )
    del file[name]
    file[name] = dice.choice(links)


def _attribute(dice: random.Random, file: h5py.File, name: str) -> None:
    holder = file[dice.choice(("/", "/", "mdd", "mdd/provenance", name))]
    keys = [*holder.attrs, "mdd_layout", "time_points", "frames_per_sweep", "segment", "first_time_point"]
    key = dice.choice(keys)
    if dice.random() < 0.3 and key in holder.attrs:
        del holder.attrs[key]
    else:
        holder.attrs[key] = dice.choice(_ATTRIBUTES)


_ATTRIBUTES: tuple[Any, ...] = (
    *(0, -1, 1, 3, 1 << 40, -(1 << 62), 1.5, float("nan"), "", "x" * 5000, "2", True, b"\xff\xfe"),
    *(np.zeros(0), np.zeros((2, 2)), np.array(["a", "b"], dtype="S1"), h5py.Empty("f4")),
)
_OBJECT_WAYS: tuple[Callable[[random.Random, h5py.File, str], None], ...] = (
    *(_delete, _replace, _fill, _fill, _fill, _flip, _flip, _link, _attribute, _attribute),
)


@dataclass
class Findings:
    """What came of a number of files.

    Attributes
    ----------
    outcomes : Counter of str
        "opened", "refused", "verified", "not sound" ...; crashes, hangs and foreign errors among them.
    strange : list of (str, str)
        File and what happened, for all that must not happen.
    slowest_s : float
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    strange: list[tuple[str, str]] = field(default_factory=list)
    slowest_s: float = 0.0


def open_all(paths: list[Path], folder: Path, sound: Path) -> Findings:
    """Open each file in a process that may die of it; what is read must be what the sound one holds."""
    findings = Findings()
    left = list(paths)
    while left:
        names = folder / "names.json"
        work = {"sound": str(sound), "names": [str(path) for path in left]}
        names.write_text(json.dumps(work), encoding="utf-8")
        done = 0
        with subprocess.Popen(
            [sys.executable, __file__, str(names)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        ) as child:
            try:
                for line in _lines(child):
                    result = json.loads(line)
                    findings.outcomes.update(result["outcomes"])
                    findings.strange += [(str(left[done]), text) for text in result["strange"]]
                    findings.slowest_s = max(findings.slowest_s, result["seconds"])
                    done += 1
            except TimeoutError:
                child.kill()
                findings.outcomes["hang"] += 1
                findings.strange.append((str(left[done]), f"no answer within {HANG_S:g} s"))
            else:
                code = child.wait()
                if done < len(left):
                    findings.outcomes["crash"] += 1
                    findings.strange.append((str(left[done]), f"the process ended with {code}"))
        left = left[done + 1 :]
    return findings


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a child says; a thread reads, so that a silence shows."""
    said: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in child.stdout or ():
            said.put(line)
        said.put("")

    threading.Thread(target=read, daemon=True).start()
    patience_s = 2 * HANG_S  # imports
    while True:
        try:
            line = said.get(timeout=patience_s)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            return
        patience_s = HANG_S
        yield line


def _try(path: Path, truth: Truth) -> dict[str, Any]:
    """Open, read everything, and verify; repair, and read everything again."""
    from microdiffusion import open_run
    from microdiffusion.daemon.offline.repair import repair_run
    from microdiffusion.errors import MddError
    from microdiffusion.runfile.verify import verify_run

    outcomes: list[str] = []
    strange: list[str] = []

    def read() -> str:
        with open_run(path) as run:
            refused, wrong = _read_all(run, truth)
        strange.extend(wrong)
        return "opened, a part refused" if refused else "opened"

    def check() -> str:
        return "sound" if verify_run(path).sound else "not sound"

    def repair() -> str:
        report = repair_run(path)
        return f"{'repaired' if report.done else 'nothing to repair'}{'' if report.sound else ', not sound'}"

    def again() -> str:
        return f"after it {read()}"

    begin_s = time.monotonic()
    for work in (read, check, repair, again):
        try:
            outcomes.append(work())
        except MddError:
            outcomes.append(f"{work.__name__}: refused")
        except Exception as error:  # that is the finding
            outcomes.append("foreign error")
            strange.append(f"{work.__name__}: {type(error).__name__}: {error}"[:300])
    return {"outcomes": outcomes, "strange": strange, "seconds": time.monotonic() - begin_s}


Truth = dict[str, list[int | None]]
"""CRC-32 of what each time point holds, by series; None: a gap."""


def _series(run: Any) -> dict[str, Any]:
    levels = {f"level {number}": series for number, series in enumerate(run.pyramid)}
    return {**levels, "projections": run.projections}


def _truth(sound: Path) -> Truth:
    from microdiffusion import open_run

    with open_run(sound) as run:
        return {name: [_sum(series, t) for t in range(len(series))] for name, series in _series(run).items()}


def _sum(series: Any, t: int) -> int | None:
    from microdiffusion.errors import DamagedError, GapError

    try:
        return zlib.crc32(series[t].tobytes())
    except (GapError, DamagedError):
        return None


def _read_all(run: Any, truth: Truth) -> tuple[int, list[str]]:
    """Return how many items were refused, and those that were read and are not what they should be."""
    from microdiffusion.errors import DamagedError

    refused, wrong = 0, []
    for name, series in _series(run).items():
        known = truth.get(name, [])
        for t in range(min(len(series), 8)):
            found = _sum(series, t)
            if found is None:
                refused += t < len(known) and known[t] is not None
            elif t >= len(known) or found != known[t]:
                wrong.append(f"{name} of time point {t} is wrong, and nothing says so")
    _ = (run.status, run.times, run.closed, run.ledger, run.provenance, run.voxel_size_um, run.gaps())
    for t in range(min(len(run), 8)):
        with suppress(DamagedError):
            run.sweep(t)
    with suppress(DamagedError):
        for t, volume in run.follow(timeout_s=0, poll_s=0):
            del volume
            if t > 100:
                break
    for name in ("events",):
        getattr(run, name, None)
    return refused, wrong


def main(names: Path) -> None:
    """Open files until there are no more."""
    work = json.loads(names.read_text(encoding="utf-8"))
    truth = _truth(Path(work["sound"]))
    for name in work["names"]:
        print(json.dumps(_try(Path(name), truth)), flush=True)


if __name__ == "__main__":
    # What C libraries say of these files is not read by anybody.
    os.environ["HDF5_DISABLE_VERSION_CHECK"] = "1"
    main(Path(sys.argv[1]))
