"""Claims: the network's additions, held against the projections of the next sweep."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.sample_data import header, look, specimen
from torch import Tensor

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.inr import Trail
from microdiffusion.engines.inr.covariance import leeway
from microdiffusion.engines.inr.estimator import SessionEstimator
from microdiffusion.engines.pipeline import Engine, Reconstructor, network_worth, open_engine
from microdiffusion.engines.pipeline.cross_validation import CrossValidated, cross_validated
from microdiffusion.engines.pipeline.prior import prior_deviation
from microdiffusion.engines.pipeline.session import Session
from microdiffusion.engines.pipeline.session_store import SessionStore
from microdiffusion.engines.pipeline.task import Task
from microdiffusion.engines.trust.claims import Claim
from microdiffusion.engines.trust.scores import Scores
from microdiffusion.engines.trust.selection import Findings, select
from microdiffusion.frames import Reconstruction, StagePositions, Sweep
from microdiffusion.optics import sweep_offset, sweep_positions

Network = Callable[[Tensor], Tensor]


class Stand:
    """A runtime whose correction is a function of the prior's middle slices; counts its windows."""

    device = torch.device("cpu")
    name = "stand-in"
    multiple = 1
    capturable = False

    def __init__(self, correction: Network) -> None:
        self.correction = correction
        self.windows = 0

    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        self.windows += len(prior)
        assert float(deviation.min()) > 0.0
        return prior[:, 4:12] + self.correction(prior[:, 4:12])


def invented(middle: Tensor) -> Tensor:
    """Return structures that are not there."""
    generator = torch.Generator().manual_seed(5)
    return 0.2 * torch.rand(middle.shape, generator=generator)


def sweeps_of(count: int, offsets: str = "golden") -> list[Sweep]:
    """Return sweeps of a specimen that keeps still."""
    volume, sweeps = specimen(), []
    head = header()
    length, step = head.profile.length_um, 4.0 * head.voxel_size_um[0]
    for number in range(count):
        centres = sweep_positions(
            length_um=length,
            step_um=step,
            z0_um=0.0,
            voxel_z_um=head.voxel_size_um[0],
            shape_z=volume.shape[0],
            offset_um=sweep_offset(number, offsets) * step % step,
        )
        images = look(volume, centres, seed=number).astype(np.float32)
        none = np.empty((0, *images.shape[1:]), np.float32)
        stage = StagePositions.along_z(centres)
        sweeps.append(Sweep(number, 0, 0, stage, images, stage[:0], none))
    return sweeps


def reconstructor(
    correction: Network, *, sessions: SessionStore | None = None, **changes: object
) -> tuple[Reconstructor, Stand]:
    config = EngineConfig.model_validate(
        {"method": "mdd", "device": "cpu", "steps": 1, "interpolation": 0.0, **changes}
    )
    stand = Stand(correction)
    engine = replace(open_engine(config.model_copy(update={"method": "inr"})), runtime=stand, name="stand-in")
    assert isinstance(engine, Engine)
    return Reconstructor(header(), config, engine, sessions=sessions), stand


def session_of(made: Reconstructor, sweep: Sweep) -> Session:
    """Return the session that a sweep belongs to."""
    session = made._sessions.peek(sweep)
    assert session is not None
    return session


def serve(correction: Network, count: int) -> tuple[list[Reconstruction], Stand]:
    made, stand = reconstructor(correction)
    return [made.reconstruct(sweep) for sweep in sweeps_of(count)], stand


@pytest.mark.parametrize("share", [-0.3, 0.0, 0.4, 1.0])
def test_the_next_sweep_tells_which_share_of_a_correction_is_right(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prior, correction = (torch.rand(16, 20, 20, generator=generator) for _ in range(2))
    operator = torch.rand(4, 16, generator=generator)
    seen = torch.einsum("mz,zyx->myx", operator, prior + share * correction)
    noisy = seen + 0.02 * torch.randn(seen.shape, generator=generator)
    claim = Claim.of(prior, prior + correction)
    age = torch.full(prior.shape, 3, dtype=torch.uint8)
    explained, claimed = claim.held_against(operator, noisy, torch.full_like(seen, 4e-4), age).tolist()
    assert explained / claimed == pytest.approx(share, abs=0.01)
    # Nothing was claimed of what is new.
    assert claim.held_against(operator, noisy, seen, torch.ones_like(age)).tolist() == [0.0, 0.0]


def test_a_large_image_answers_by_some_of_its_pixels() -> None:
    claim = Claim.of(torch.zeros(2, 512, 512), torch.ones(2, 512, 512))
    assert claim.every == 8
    assert claim.nbytes < 2 * 2 * 512 * 512 * 4 / 10
    age = torch.full((2, 512, 512), 2, dtype=torch.uint8)
    images = torch.full((1, 512, 512), 0.5)
    explained, claimed = claim.held_against(torch.ones(1, 2), images, images, age).tolist()
    assert explained / claimed == pytest.approx(0.25)


def test_a_claim_is_as_bright_as_the_sweep_that_it_is_held_against() -> None:
    generator = torch.Generator().manual_seed(0)
    prior, correction = (0.1 + torch.rand(8, 12, 12, generator=generator) for _ in range(2))
    operator = torch.full((2, 8), 0.125)
    dark, fades = 0.1, 0.6
    seen = dark + fades * torch.einsum("mz,zyx->myx", operator, prior + 0.5 * correction - dark)
    claim = Claim.of(prior, prior + correction, brightness=0.8)
    age = torch.full(prior.shape, 3, dtype=torch.uint8)
    told = claim.held_against(
        operator, seen, torch.ones_like(seen), age, brightness=0.8 * fades, dark=dark
    ).tolist()
    assert told[0] / told[1] == pytest.approx(0.5, abs=0.01)


def test_another_specimen_begins_anew() -> None:
    findings = Findings(explained=900.0, claimed=1000.0)
    session = SimpleNamespace(findings=findings, claim=None, field=None, places=())
    task = SimpleNamespace(session=session, learned=SimpleNamespace(still=0.3), lane="sweep", known=None)
    network_worth.note(cast("Task", task), 0.0, 0.0)
    assert findings.borne_out == pytest.approx(0.9)
    task.learned.still = 0.0
    network_worth.note(cast("Task", task), 0.0, 0.0)
    assert findings.borne_out is None


def test_the_deviation_is_in_units_of_the_session() -> None:
    learned = SimpleNamespace(deviation=lambda: torch.ones(2, 3, 3))
    session, field = SimpleNamespace(span=4.0), SimpleNamespace(unit=2.0)
    task = cast("Task", SimpleNamespace(learned=learned, session=session, field=field))
    assert float(prior_deviation(task).mean()) == 0.5


def test_no_slabs_are_left_out_once_the_session_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps, asked = sweeps_of(9), []

    def counted(*arguments: Any) -> CrossValidated | None:
        asked.append(1)
        return cross_validated(*arguments)

    monkeypatch.setattr("microdiffusion.engines.pipeline.reconstructor.cross_validated", counted)
    correction = half_way(sweeps[0])
    made, _ = reconstructor(lambda middle: 2 * correction(middle))  # enough to tell by, in late sweeps, too
    for sweep in sweeps:
        made.reconstruct(sweep)
    assert len(asked) == 1


def test_what_later_projections_bore_out_outweighs_every_other_finding() -> None:
    scores = Scores({"mdd": 1.0, "inr": 1.0, "tikhonov": 1.0}, {}, miss=0.5)
    findings = Findings(left_out=0.1)
    assert select("mdd", findings, scores).served == "inr"
    findings.note(200.0, 1000.0)
    chosen = select("mdd", findings, scores)
    assert (chosen.served, chosen.fallback) == ("blend", "inr")
    assert chosen.weight == pytest.approx(0.5)
    assert "20%" in chosen.why
    findings.forget_claims()
    assert findings.borne_out is None


@pytest.mark.parametrize(
    ("borne_out", "served"), [(-0.3, "inr"), (-0.1, "inr"), (0.02, "blend"), (0.5, "mdd"), (1.7, "mdd")]
)
def test_half_of_a_correction_borne_out_is_enough_and_none_of_it_is_hardly_anything(
    borne_out: float, served: str
) -> None:
    findings = Findings(explained=1000.0 * borne_out, claimed=1000.0)
    assert select("mdd", findings, Scores({"mdd": 1.0, "inr": 1.0}, {})).served == served


def test_a_held_out_projection_that_displaces_the_inr_outweighs_later_ones() -> None:
    errors = {"mdd": 3.0, "inr": 3.0, "tikhonov": 1.0}
    shares = {"inr": 1.0, "tikhonov": 0.0}
    findings = Findings(explained=900.0, claimed=1000.0)
    residuals = {"mdd": 1.0, "inr": 1.0, "tikhonov": 1.0}
    assert select("mdd", findings, Scores(residuals, errors, shares=shares)).served == "tikhonov"


def test_what_was_borne_out_outlasts_another_range() -> None:
    findings = Findings(left_out=0.1, explained=900.0, claimed=1000.0)
    other = findings.in_another_range()
    assert other.borne_out == pytest.approx(0.9)
    assert other.left_out is None


def test_the_second_sweep_counts_half_and_no_sweep_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = sweeps_of(3)
    told = []
    for counts in (0.5, 1.0):
        monkeypatch.setattr(network_worth, "_FIRST_COUNTS", counts)
        made, _ = reconstructor(half_way(sweeps[0]))
        for sweep in sweeps:
            made.reconstruct(sweep)
            findings = session_of(made, sweep).findings
            told.append((findings.explained, findings.claimed))
    (_, (half, claimed), _), (_, (whole, _), (_, both)) = told[:3], told[3:]
    assert half == pytest.approx(whole / 2)
    assert claimed <= 1000.0
    assert both <= 1400.0


def test_a_network_that_invents_is_served_for_one_sweep_at_most_and_spared_from_then_on() -> None:
    answers, stand = serve(invented, 8)
    assert [answer.network_weight for answer in answers[1:]] == [0.0] * 7
    assert all("bore out" in answer.why for answer in answers[1:])
    windows = stand.windows
    _, everytime = serve(torch.zeros_like, 8)
    assert windows < 0.6 * everytime.windows
    made, _ = reconstructor(torch.zeros_like)
    plain = [made.reconstruct(sweep, effort=2) for sweep in sweeps_of(8)]
    np.testing.assert_allclose(answers[-1].volume, plain[-1].volume, rtol=1e-5)


def half_way(first: Sweep) -> Network:
    """Return the correction of a network that goes half of the way to the truth, in units of a session."""
    truth = torch.from_numpy(specimen()) + header().camera.offset
    low, high = (float(each) for each in np.percentile(first.projections, [1.0, 99.9]))
    count = -(-len(truth) // 8) * 8
    padded = torch.nn.functional.pad(truth, (0, 0, 0, 0, 0, count - len(truth)))
    windows = ((padded - low) / (high - low)).unflatten(0, (-1, 8))

    def correction(middle: Tensor) -> Tensor:
        return 0.5 * (windows - middle)

    return correction


@pytest.mark.parametrize("effort", [0, 1])
def test_slabs_left_out_of_a_first_sweep_tell_a_network_that_knows_from_one_that_invents(effort: int) -> None:
    sweeps, shares = sweeps_of(2), []
    for correction in (half_way(sweeps[0]), invented):
        made, _ = reconstructor(correction)
        made.reconstruct(sweeps[0], effort=effort)
        if effort:  # there was no time; it is made up for
            assert session_of(made, sweeps[0]).findings.left_out is None
            session_of(made, sweeps[0]).claim = None
            made.reconstruct(sweeps[1])
        findings = session_of(made, sweeps[0]).findings
        assert set(findings.left_out_errors) == {"mdd", "inr", "tikhonov", "linear"}
        shares.append(findings.left_out)
    assert shares[0] > 1.0 > 0.15 > shares[1]


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "a frame lost"])
@pytest.mark.parametrize("offsets", ["fixed", "alternate"])
def test_places_that_were_just_seen_tell_nothing(offsets: str, lost: bool) -> None:
    made, _ = reconstructor(invented)
    claimed = []
    for sweep in sweeps_of(5, offsets):
        if lost and sweep.sweep > 1:
            kept = np.arange(len(sweep.stage)) != sweep.sweep % len(sweep.stage)
            sweep = replace(sweep, stage=sweep.stage[kept], projections=sweep.projections[kept])
        made.reconstruct(sweep)
        session = session_of(made, sweep)
        claimed.append(session.findings.claimed)
    # Alternating, the second sweep is the last one at new places; what it told grows old.
    assert claimed[0] == 0.0
    assert (claimed[1] > 0.0) == (offsets == "alternate")
    assert all(after <= before for before, after in itertools.pairwise(claimed[1:]))


def test_a_specimen_that_bleaches_bears_out_as_much() -> None:
    shares = []
    for bleaching in (1.0, 0.93):
        sweeps = sweeps_of(4)
        made, _ = reconstructor(half_way(sweeps[0]))
        dark = header().camera.offset
        for sweep in sweeps:
            faded = (sweep.projections - dark) * bleaching**sweep.sweep + dark
            made.reconstruct(replace(sweep, projections=faded.astype(np.float32)))
        session = session_of(made, sweeps[0])
        shares.append(session.findings.explained / session.findings.claimed)
    assert shares[1] == pytest.approx(shares[0], rel=0.15)


def told_to_change() -> float:
    """Return how much of a network's invention shows in slabs of earlier sweeps, of six."""
    sweeps = sweeps_of(6)
    made, _ = reconstructor(invented, fallback=False)
    shares = []
    for sweep in sweeps:
        known = made.reconstruct(sweep, lane="rolling", effort=2).volume
        change = made.reconstruct(sweep).volume - known
        # The last sweep aside, which the data consistency holds to.
        for earlier in sweeps[: sweep.sweep]:
            seen = np.tensordot(header().operator_at(earlier.stage), change, 1)
            shares.append(np.square(seen).mean() / np.square(change).mean())
    return float(np.mean(shares))


def test_a_correction_changes_least_what_earlier_sweeps_have_told(monkeypatch: pytest.MonkeyPatch) -> None:
    share = told_to_change()
    monkeypatch.setattr(SessionEstimator, "_leeway", lambda known: torch.eye(known.shape[0]))
    assert share < 0.7 * told_to_change()


def test_the_leeway_is_where_the_covariance_is() -> None:
    covariance = np.diag([1.0, 1.0, 1e-4, 1e-4])
    np.testing.assert_allclose(leeway(covariance), np.diag([2 / 3, 2 / 3, 2e-4, 2e-4]), rtol=1e-3)


def test_a_claim_about_a_specimen_that_has_moved_is_not_held_against_it() -> None:
    made, _ = reconstructor(invented)
    first, second = sweeps_of(2)
    made.reconstruct(first)
    session = session_of(made, first)
    assert session.claim is not None
    session.claim = replace(session.claim, shift=(0.0, 2.0, 0.0))
    made.reconstruct(second)
    assert session.findings.claimed == 0.0


def test_counts_without_end_or_number_poison_nothing() -> None:
    claim = Claim.of(torch.full((2, 4, 4), 1e9), torch.full((2, 4, 4), -1e9))
    assert bool(torch.isfinite(claim.prior).all() and torch.isfinite(claim.correction).all())
    findings = Findings()
    findings.note(500.0, 1000.0)
    findings.note(float("nan"), 1000.0)
    findings.note(float("inf"), float("inf"))
    findings.note(500.0, 1000.0)
    assert findings.borne_out == pytest.approx(0.5)


def test_a_network_that_is_right_is_served() -> None:
    sweeps, truth = sweeps_of(6), specimen() + header().camera.offset
    made, _ = reconstructor(half_way(sweeps[0]))
    weights, gains = [], []
    for sweep in sweeps:
        inr = made.reconstruct(sweep, lane="rolling", effort=2).volume
        answer = made.reconstruct(sweep)
        weights.append(answer.network_weight)
        gains.append(np.square(inr - truth).mean() / np.square(answer.volume - truth).mean())
    assert min(weights[1:]) > 0.6
    assert min(gains[2:]) > 1.5


def test_a_network_that_recovers_is_served_again() -> None:
    sweeps = sweeps_of(9)
    made, stand = reconstructor(invented)
    weights = []
    for sweep in sweeps:
        weights.append(made.reconstruct(sweep).network_weight)
        if sweep.sweep == 1:
            stand.correction = half_way(sweeps[0])
    assert weights[1:4] == [0.0] * 3
    assert weights[-1] > 0.5


def test_a_claim_outlives_the_session_being_put_aside() -> None:
    made, _ = reconstructor(invented)
    first = sweeps_of(1)[0]
    made.reconstruct(first)
    session = session_of(made, first)
    state = session.state().on_the_host()
    fresh, _ = reconstructor(invented)
    fresh.reconstruct(first)
    other = session_of(fresh, first)
    revived = type(session).of(state, other.prior, other.field)
    assert revived.claim is not None
    assert session.claim is not None
    torch.testing.assert_close(revived.claim.correction, session.claim.correction)
    assert session.nbytes > session.claim.nbytes


def test_a_rolling_update_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = reconstructor(invented)
    first, second = sweeps_of(2)
    made.reconstruct(first)
    before = session_of(made, first)
    claim, findings = before.claim, replace(before.findings)

    def held_against(*_: object, **__: object) -> Tensor:
        raise AssertionError("a rolling update tests nothing about the network")

    monkeypatch.setattr(Claim, "held_against", held_against)
    made.reconstruct(second, lane="rolling")
    assert before.claim is claim
    assert before.findings == findings


@pytest.mark.parametrize("room", [1e9, 1.0], ids=["room", "none"])
def test_offline_the_way_there_tells_what_the_network_is_worth(tmp_path: Path, room: float) -> None:
    # Little enough for the other findings to trust it.
    made, stand = reconstructor(lambda middle: 0.1 * invented(middle), sessions=SessionStore(most_bytes=room))
    sweeps = sweeps_of(6)
    with Trail(tmp_path) as trail:
        for sweep in sweeps:
            made.look_ahead(sweep, trail)
        asked = stand.windows
        answers = [made.reconstruct(sweep, trail=trail) for sweep in reversed(sweeps)]
    assert asked > 0
    assert [answer.network_weight for answer in answers] == [0.0] * 6
    assert all("bore out" in answer.why for answer in answers)
    assert not any(answer.runtime for answer in answers)
