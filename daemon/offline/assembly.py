"""A session in parts: `reconstruct_part` makes the volumes of some sweeps, `assemble_file` a run file of all.

One thread; a part or a run file is there whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.daemon.engine import provenance
from microdiffusion.daemon.offline.parts import Made, read_about, read_part, write_part
from microdiffusion.daemon.offline.reconstruct import (
    Progress,
    Report,
    learns,
    open_reconstructor,
    refuse_output,
    session_results,
    write_run,
)
from microdiffusion.daemon.offline.sweeps import SweepKey, open_recorded
from microdiffusion.files import staged
from microdiffusion.frames import Drift

if TYPE_CHECKING:
    from microdiffusion.config import Config
    from microdiffusion.engines.pipeline import Engine

_SINCE = "since"  # in what a part says of itself


def reconstruct_part(
    path: Path,
    output: Path,
    *,
    config: Config,
    keys: Sequence[SweepKey],
    before: Sequence[SweepKey] = (),
    after: Sequence[SweepKey] = (),
    states: tuple[Path | None, Path] | None = None,
    causal: bool = False,
    engine: Engine | None = None,
    progress: Progress = lambda done, total, result: None,
    report: Report = lambda stage, done, total: None,
) -> None:
    """Reconstruct some sweeps of a session into the part file `output`, for `assemble_file`.

    Parameters
    ----------
    keys : sequence of SweepKey
        Sweeps of one session, in time; those without enough frames are passed over.
    before, after : sequence of SweepKey
        Sweeps of that session next to them that they are to know, and that get no volume.
    states : pair of Path, optional
        Folder with the state of the session before the first of them, None where it begins there; and the
        folder for the state after the last, written whole or not at all. Only where `causal`.

    Other parameters and errors as of `reconstruct_file`.
    """
    refuse_output(output)
    with open_recorded(path) as recorded, staged(output) as (unnamed,):
        folder = unnamed.parent / "state"
        if states is not None and states[0] is not None:
            shutil.copytree(states[0], folder)
        reconstructor, info, store = open_reconstructor(
            # Of a projection file it is another one each time; the state of the piece before has to be found.
            recorded.header.model_copy(update={"run_id": "0" * 32}),
            config,
            report,
            lambda share: None,
            engine,
            state=folder if states is not None else None,
        )
        usable = {key for key in keys if recorded.keys[key]}
        first, last = ([key for key in some if recorded.keys[key]] for some in (before, after))
        taken = [*first, *(key for key in keys if key in usable), *last]

        def results() -> Iterator[Made]:
            done = 0
            for made in session_results(
                recorded, reconstructor, taken, unnamed.parent, report, causal=causal
            ):
                if made[1] is not None and made[0] in usable:
                    done += 1
                    progress(done, len(usable), made[1])
                    yield made

        about = provenance(info) | ({_SINCE: str(first[0].sweep)} if first else {})
        write_part(unnamed, results(), about)
        store.close()
        if states is not None:
            shutil.rmtree(states[1], ignore_errors=True)
            folder.mkdir(exist_ok=True)
            folder.rename(states[1])  # before the part has its name: that says that both are there


def assemble_file(
    path: Path,
    output: Path,
    parts: Sequence[Path],
    *,
    config: Config,
    causal: bool = False,
    marks: Mapping[str, str] | None = None,
) -> None:
    """Write the run file `output` of the frames of `path` and the volumes of `parts`, of all its sessions.

    It holds what `reconstruct_file` would have written. Errors as of that.
    """
    refuse_output(output)
    with open_recorded(path) as recorded, staged(output) as (unnamed,):

        def results() -> Iterator[Made]:
            yield from ((key, None, float("nan")) for key, usable in recorded.keys.items() if not usable)
            for part, about in zip(parts, abouts, strict=True):
                yield from _in_one_frame(read_part(part), about.pop(_SINCE, None), drifts)

        drifts: dict[SweepKey, Drift] = {}
        abouts = [read_about(part) for part in parts]
        devices = "; ".join(sorted({about["device"] for about in abouts}))
        write_run(
            recorded,
            unnamed,
            results(),
            config=config,
            about=abouts[0] | {"device": devices} | dict(marks or {}),
            both_ways=learns(config) and not causal,
        )


def _in_one_frame(made: Iterable[Made], since: str | None, drifts: dict[SweepKey, Drift]) -> Iterator[Made]:
    """Yield volumes of a part with their drift from the beginning of the session.

    Parameters
    ----------
    since : str, optional
        Sweep of the warm-up that their drift counts from; None: the session's beginning, or its state.
    drifts : dict of SweepKey to Drift
        Of the session's parts before it; those of this one are added.
    """
    for key, result, acquired_s in made:
        if result is not None:
            if since is not None and (began := drifts.get(key._replace(sweep=int(since)))):
                values = zip(astuple(result.drift), astuple(began), strict=True)
                result.drift = Drift(*(value + before for value, before in values))
            drifts[key] = result.drift
        yield key, result, acquired_s
