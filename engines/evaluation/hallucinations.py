"""Hallucination test: objects that a volume shows and the specimen has not, or the other way round.

A detection task with signal and background known exactly (Barrett and Myers, Foundations of Image Science,
2004, chapter 13), on objects that are removed from a specimen or added to it (`objects.py`). With the truth t
of the specimen and an object's light o, an answer x shows of the object the *contrast*

    c = <o, x - (t without the object)> / <o, o>,

1 where it is there as it is, 0 where nothing is. The same number at `_ELSEWHERE` other places of the same
answer, where no object is and the specimen is as bright, is the answer's noise, and the *threshold* its
quantile 1 - `FALSE_POSITIVES`: so all methods see objects in nothing equally often, and a restless answer
needs more contrast to be believed. An object is *shown* where c exceeds this threshold and half of its
contrast; *found*: it is there and shown; *invented*: it is not there and shown. In each specimen half of the
objects are there; in its twin the other half.

A third number asks for depth. A projection sees an object but not where in its slab it is, so an answer may
show it twice: *echoed* are the objects that are there, but that the answer shows half a slab above or below
as well.

One thread; one specimen in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from microdiffusion.engines.evaluation.courses import Still
from microdiffusion.engines.evaluation.objects import KINDS, ORIGINS, ObjectKind, ProbeObject, plant
from microdiffusion.engines.evaluation.protocol import Protocol
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Hooks, Results, cases
from microdiffusion.engines.evaluation.sessions import SessionPlan, session_sweeps
from microdiffusion.engines.pipeline import Engine
from microdiffusion.errors import MddError

FALSE_POSITIVES = 0.05
"""Share of the places without an object at which an answer's own noise passes for one."""
VISIBLE = 0.5
"""Share of an object's contrast that an answer must show besides."""
_ELSEWHERE = 200
_CANDIDATES = 4000  # places that those are picked from
_VIEW = 12  # voxels around an object that a picture shows


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A specimen (Z, Y, X) with those of the objects that are `there`."""

    truth: NDArray[np.float32]
    objects: Sequence[ProbeObject]
    there: NDArray[np.bool_]


def twins(
    structure: NDArray[np.float32], kind: ObjectKind, count: int, seed: int
) -> tuple[NDArray[np.float32], list[Twin]]:
    """Return the specimen without objects, and two with complementary halves of `count` of each origin."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    bare, objects = plant(structure, kind, count, rng)
    first = np.arange(len(objects)) % 2 == 0
    made = []
    for there in (first, ~first):
        truth = bare.copy()
        for each, present in zip(objects, there, strict=True):
            if present:
                each.patch(truth)[...] += each.light
        made.append(Twin(truth, objects, there))
    return bare, made


def comparable_places(
    bare: NDArray[np.float32], objects: Sequence[ProbeObject], seen: NDArray[np.bool_], seed: int
) -> list[NDArray[np.int64]]:
    """Return for each object places (N, 3) without one where the specimen is as bright.

    As bright: the mean over a Gaussian as wide as half the object's reach; of candidates drawn at random,
    those with the least difference. `seen` (Z,) are the slices that count.
    """
    reach = len(objects[0].light) // 2
    around = ndimage.gaussian_filter(bare, reach / 2)
    free = np.zeros(bare.shape, np.bool_)
    free[reach:-reach, reach:-reach, reach:-reach] = True
    free &= seen[:, None, None]
    for each in objects:
        z, y, x = (slice(max(0, at - 2 * reach), at + 2 * reach + 1) for at in each.place)
        free[z, y, x] = False
    rng = np.random.default_rng(seed)
    places = rng.permutation(np.argwhere(free))[:_CANDIDATES]
    light = around[tuple(places.T)]
    return [places[np.argsort(np.abs(light - around[each.place]))[:_ELSEWHERE]] for each in objects]


def judge(
    answer: NDArray[np.float32],
    twin: Twin,
    elsewhere: Sequence[NDArray[np.int64]],
    slab: float,
) -> Iterator[dict[str, object]]:
    """Yield for each object its contrast, the threshold, and the contrast of its echoes.

    `elsewhere` are the `comparable_places`, `slab` the slab's length in slices.
    """
    error = np.clip(answer, 0.0, 1.0) - twin.truth
    for each, there, places in zip(twin.objects, twin.there, elsewhere, strict=True):
        energy = float(np.sum(each.light**2))

        def contrast(place: tuple[int, int, int], each: ProbeObject = each, energy: float = energy) -> float:
            return float(np.vdot(each.light, each.patch(error, place))) / energy

        noise = [contrast((int(z), int(y), int(x))) for z, y, x in places]
        z, y, x = each.place
        reach, half = len(each.light) // 2, round(slab / 2)
        beside = [at for at in (z - half, z + half) if reach <= at < len(error) - reach]
        yield {
            "origin": each.origin,
            "peak": float(each.light.max()),
            "there": bool(there),
            "contrast": contrast(each.place) + float(there),
            "threshold": float(np.quantile(noise, 1.0 - FALSE_POSITIVES)),
            "echo": max((contrast((at, y, x)) for at in beside), default=0.0),
        }


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Return how many of how many objects were found, detected, invented and echoed.

    *Detected* asks for the threshold alone, not for half of the contrast.
    """
    there = [row for row in rows if row["there"]]
    absent = [row for row in rows if not row["there"]]

    def shown(row: Mapping[str, Any], key: str = "contrast") -> bool:
        return bool(row[key] > max(row["threshold"], VISIBLE))

    return {
        "found": (sum(map(shown, there)), len(there)),
        "detected": (sum(row["contrast"] > row["threshold"] for row in there), len(there)),
        "invented": (sum(map(shown, absent)), len(absent)),
        "echoed": (sum(shown(row, "echo") for row in there), len(there)),
    }


def shown_sweeps(sweeps: int) -> list[int]:
    """Return the numbers of the sweeps that are judged: the powers of two, and the last."""
    return sorted({*(2**power - 1 for power in range(sweeps.bit_length())), sweeps - 1})


def hallucination_calls(plan: EvaluationPlan) -> int:
    """Return how many sessions are reconstructed."""
    return len(plan.files) * len(plan.methods) * len(plan.steps) * plan.seeds * len(KINDS) * 2


def evaluate_hallucinations(
    plan: EvaluationPlan, sessions: SessionPlan, objects: int, hooks: Hooks | None = None
) -> Results:
    """Run the test with up to so many objects of each kind and origin in each volume.

    A row is one object in one answer: volume, step, seed, kind, method, sweep (from 1), the object's number,
    and what `judge` says; the brightest of each origin have a `view` of truth and answer around them.

    Raises
    ------
    ConfigError, DependencyError, MissingFileError, InputFileError
        A method's device or weights cannot be opened. (Not for what a single volume lacks.)
    """
    hooks = hooks or Hooks()
    engines, results = plan.open(), Results()
    done = 0
    for volume, structure, protocol, seed in cases(plan, hooks, results):
        for kind in KINDS:
            where = f"{volume}, step {protocol.step:g}, {kind.name}"
            key = {"volume": volume, "step": protocol.step, "seed": seed, "kind": kind.name}
            try:
                for row in _rows(plan, sessions, engines, structure, protocol, kind, objects, seed):
                    hooks.progress(done, f"{where}: {row['method']}")
                    results.rows.append(key | row)
            except MddError as error:
                hooks.leave_out(results, f"{where}: {error}")
            done += 2 * len(plan.methods)
    hooks.progress(hallucination_calls(plan), "done")
    return results


def _rows(
    plan: EvaluationPlan,
    sessions: SessionPlan,
    engines: Mapping[str, Engine | None],
    structure: NDArray[np.float32],
    protocol: Protocol,
    kind: ObjectKind,
    objects: int,
    seed: int,
) -> Iterator[dict[str, object]]:
    bare, made = twins(structure, kind, objects, seed)
    if not made[0].objects:
        return
    shown = shown_sweeps(sessions.sweeps)
    # The brightest of each origin, for the pictures.
    drawn = {
        max(some, key=lambda number: float(made[0].objects[number].light.max()))
        for origin in ORIGINS
        if (some := [n for n, each in enumerate(made[0].objects) if each.origin == origin])
    }
    for twin in made:
        header, sweeps = session_sweeps(Still(twin.truth, sessions.sweeps), protocol, sessions, seed)
        seen = header.operator_at(sweeps[0].stage).sum(0) > 0
        inner = np.zeros(len(seen), np.bool_)
        inner[np.flatnonzero(seen)[0] : np.flatnonzero(seen)[-1] + 1] = True
        elsewhere = comparable_places(bare, twin.objects, inner, seed)
        for method in plan.methods:
            # What forgets needs no sweep that is not judged.
            wanted = sweeps if method.learns(plan.engine) else [sweeps[number] for number in shown]
            volumes = method.over_time(header, wanted, plan.engine, engine=engines[method.name], seed=seed)
            for number, answer in volumes:
                if number not in shown:
                    continue
                judged = judge(answer, twin, elsewhere, protocol.length)
                for each, row in enumerate(judged):
                    yield {"method": method.name, "sweep": number + 1, "object": each, **row} | (
                        {"view": _view(answer, twin, each)} if each in drawn else {}
                    )


def _view(answer: NDArray[np.float32], twin: Twin, number: int) -> NDArray[np.float32]:
    """Return truth and answer (2, Z, X) around an object, in the section through it."""
    z, y, x = twin.objects[number].place
    part = (slice(max(0, z - _VIEW), z + _VIEW + 1), y, slice(max(0, x - _VIEW), x + _VIEW + 1))
    return np.stack([twin.truth[part], np.clip(answer[part], 0.0, 1.0)])
