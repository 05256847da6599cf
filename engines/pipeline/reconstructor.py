"""The engine call: a sweep of projections in, a volume out.

The daemon, `mdd reconstruct` and the benchmarks use this class and nothing below it. It keeps a session of
its own for each channel and position (`session.py`), and for each *lane*: "sweep" for time points as they
come, "later" for what is caught up, so that this does not disturb the first. A "rolling" update of the live
view is one more update of a copy of what the lane "sweep" knows, and tests nothing about the network. The
*effort* says what a volume may cost: 0 all that the configuration asks for, 1 one evaluation of the network
without guidance or tests, 2 the INR without the network. The way of a sweep:

    normalise (`task.py`) -> INR of the sweep alone, INR of the session (`prior.py`: what all sweeps say)
    -> the update (`update.py`: few-step sampler with data consistency, scores) -> selection of network,
    fallback or blend -> back to the units of the projections

After the prior the host waits for the device twice: for the scores and for the volume. Runs on one thread of
the engine process. Memory is bounded whatever the number of sweeps: see `engines/memory.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microdiffusion.engines.diffusion import bridge_noise
from microdiffusion.engines.pipeline import network_worth, rivals, watch
from microdiffusion.engines.pipeline.confidence import confidence, uncertainty_map
from microdiffusion.engines.pipeline.cross_validation import CrossValidated, cross_validated
from microdiffusion.engines.pipeline.cuda_graphs import Graphs
from microdiffusion.engines.pipeline.device import Clock, download, on_stream, own_stream, settle
from microdiffusion.engines.pipeline.engine import Engine, open_engine
from microdiffusion.engines.pipeline.feedback import feedback_of
from microdiffusion.engines.pipeline.geometry import Geometries, Geometry
from microdiffusion.engines.pipeline.prior import (
    age_map,
    drift_um,
    prior_deviation,
    prior_leeway,
    sweep_prior,
)
from microdiffusion.engines.pipeline.run_sessions import RunSessions
from microdiffusion.engines.pipeline.task import Normaliser
from microdiffusion.engines.pipeline.update import SCORES, Update, UpdateSettings
from microdiffusion.engines.trust import (
    Claim,
    Findings,
    Scores,
    Selection,
    select,
)
from microdiffusion.frames import Confidence, Reconstruction

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.config import EngineConfig
    from microdiffusion.engines.diffusion import Runtime
    from microdiffusion.engines.inr import Trail
    from microdiffusion.engines.pipeline.session_store import SessionStore
    from microdiffusion.engines.pipeline.task import Task
    from microdiffusion.engines.pipeline.update import Tensors
    from microdiffusion.engines.reference import ReferenceMethod
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader
    from microdiffusion.wire import SweepFeedback

_NO_TIME = "there was no time for the network"
_SPARED = "later projections bore out nothing of what the network added"
# Sweeps between two cross-validations, where no later sweeps tell what the network is worth.
_TEST_EVERY = 8
_MOST_UPDATES = 64  # as many geometries are kept


class Reconstructor:
    """Turns sweeps of one run into volumes.

    Parameters
    ----------
    header : RunHeader
        Geometry, beam and camera.
    engine : Engine, optional
        Device and network; by default opened from the configuration.
    sessions : SessionStore, optional
        Keeps the sessions, also those of other runs; by default one of its own, in memory.
    report : callable
        Progress of the method "microdiffusion", whose sweeps take hours: stage, amount done, total.
    on_feedback : callable
        Takes what each sweep of an adaptive run showed, before the network works on it.

    Raises
    ------
    ConfigError
        The device does not exist.
    MissingFileError, InputFileError
        The weights cannot be loaded.
    """

    def __init__(
        self,
        header: RunHeader,
        config: EngineConfig,
        engine: Engine | None = None,
        *,
        sessions: SessionStore | None = None,
        report: Callable[[str, int, int], None] = lambda stage, done, total: None,
        on_feedback: Callable[[SweepFeedback], None] = lambda feedback: None,
    ) -> None:
        self.header = header
        self.config = config
        self.engine = engine or open_engine(config)
        self.device = self.engine.device
        self._runtime, self._rival, self._left_out = rivals.contenders(self.engine, header, config)
        self._geometries = Geometries(header, self.device)
        self.learns = config.memory == "session" and config.method in ("mdd", "inr")
        self._sessions = RunSessions(header, config.inr, self.device, sessions, learns=self.learns)
        self._normaliser = Normaliser(header, self._geometries, self._sessions, self.device)
        self._report = report
        self._on_feedback = on_feedback
        self._references: dict[tuple[int, int], ReferenceMethod] = {}
        settle(self.device)
        self._stream = own_stream(self.device)
        self._settings = UpdateSettings.of(config)
        # The same for all sessions and sweeps of a run: what the network invents does not flicker.
        noisy = config.method == "mdd" and config.interpolation > 0
        self._noise = bridge_noise(header.shape, config.seed, self.device) if noisy else None
        self._updates: dict[tuple[Geometry, UpdateSettings, bool], Update] = {}
        self._graphs = Graphs() if self.device.type == "cuda" and config.cuda_graphs else None

    def configure(self, config: EngineConfig) -> None:
        """Use other `steps`, `guidance` or `tile` from the next sweep on; the sessions stay warm."""
        self.config = config
        if UpdateSettings.of(config) != self._settings:
            self._settings = UpdateSettings.of(config)
            self._updates.clear()
            if self._graphs is not None:
                self._graphs.clear()

    @torch.no_grad()
    def look_ahead(self, sweep: Sweep, trail: Trail) -> None:
        """Take in a sweep of a session without a volume, and keep in `trail` what is known then.

        Where a session `learns`, all of its sweeps in order, then `reconstruct` with the trail from the last
        to the first, make volumes of which each knows all sweeps.

        Raises
        ------
        GeometryError
            As for `reconstruct`.
        """
        with on_stream(self._stream):
            clock = Clock(self.device)
            task = self._normaliser.task(sweep, "ahead", 0)
            # What the network is worth to the session has to be known before the way back.
            tested = self._runtime is not None and task.session.sweeps % network_worth.EVERY == 0
            update, given, _ = self._given(task, clock, 0 if tested else 2)
            rivals.note(task, network_worth.evidence(task).tolist(), self.engine.belonging)
            rival: Claim | None = None
            answers: Tensors = {}
            if tested:
                update = self._update(task.geometry, 0, self._network(task))
                rival = self._rival_claim(task, given, clock)
                answers = self._updated(task, update, given, clock)
            before, field = task.session.field, task.field
            if before is not None and field is not None:
                images = (task.images - task.base) * (task.session.span / field.unit)
                trail.keep(sweep.sweep, field.known(before, task.operator_at, images, task.level))
            network_worth.keep(task, answers, rival)
            trail.findings = task.session.findings
            task.session.sweeps += 1
            task.session.field = task.field
            self._sessions.keep(sweep, "ahead", task.session)

    @torch.no_grad()
    def reconstruct(
        self, sweep: Sweep, *, lane: str = "sweep", effort: int = 0, trail: Trail | None = None
    ) -> Reconstruction:
        """Return the volume of one sweep.

        Parameters
        ----------
        lane : "sweep", "rolling" or "later"
            Which session of the channel and position it belongs to.
        effort : int
            0 full, 1 one evaluation of the network, 2 the INR without it.
        trail : Trail, optional
            Of `look_ahead`, where sweeps come from the last to the first.

        Raises
        ------
        GeometryError
            A slab lies outside of the volume, or the sweep holds no projection.
        """
        with on_stream(self._stream):
            return self._reconstruct(sweep, lane, effort if self.config.method == "mdd" else 0, trail)

    def _reconstruct(
        self, sweep: Sweep, lane: str, effort: int, trail: Trail | None, before: watch.Watched | None = None
    ) -> Reconstruction:
        clock, config = Clock(self.device), self.config
        task = self._normaliser.task(sweep, lane, effort)
        if trail is not None:
            task.known = trail.at(sweep.sweep, self.device)
            if isinstance(trail.findings, Findings):
                task.session.findings = trail.findings
        clock.lap("prepare")
        watched = before or watch.look(task)
        spared = (
            config.fallback
            and network_worth.worthless(task.session)
            and (trail is not None or task.session.sweeps % network_worth.EVERY > 0)
        )
        allowed = 2 if spared else effort
        update, given, reference = self._given(task, clock, allowed)
        if trail is None and lane != "rolling" and task.another_specimen:
            # Its range, its texture and what the network is worth to it are not those of the one before.
            self._sessions.begin(sweep, lane, task.geometry.conditions.length, task.session.noise)
            return self._reconstruct(sweep, lane, effort, trail, watched)
        if self._cross_validate(task):
            clock.lap("sampler")
            update = self._update(task.geometry, allowed, self._network(task))
        if lane == "sweep" and task.field is not None and task.field.estimator.by_slice is not None:
            self._on_feedback(feedback_of(task, task.field, task.field.estimator.by_slice, self.header))
        told = task.session.rival_claim is not None
        if told:  # which of two networks is the better one, in time for this sweep
            rivals.note(task, network_worth.evidence(task).tolist(), self.engine.belonging)
            update = self._update(task.geometry, allowed, self._network(task))
        rival = None if spared else self._rival_claim(task, given, clock)
        answers = self._updated(task, update, given, clock)
        found = answers.pop(SCORES)
        if not told:
            found = torch.cat([found, network_worth.evidence(task)])
        numbers = found.tolist()
        if not told:
            rivals.note(task, numbers[-4:], self.engine.belonging)
        scores = Scores.read(numbers, update.names, held=task.held is not None)
        selection = self._serve(task, answers, scores)
        served = selection.served
        spread, sure = None, Confidence()
        if lane != "rolling":
            spread, sure = confidence(task, answers[served])
            spread.mul_(task.session.span)
        volume = download((answers[served] * task.session.span).add_(task.session.low))
        network_worth.keep(task, answers, rival)
        alarms = watch.settle(task, watched, scores, served)
        task.session.sweeps += 1
        task.session.field = task.field
        self._sessions.keep(sweep, lane, task.session)
        clock.lap("scores")
        why = _NO_TIME if effort == 2 else _SPARED if spared else selection.why
        whose = self._left_out or task.session.findings.why_general
        seconds = clock.seconds()
        if reference:  # the stages it consists of
            del seconds["reference"]
            seconds |= reference
        return Reconstruction(
            volume=volume,
            served=served,
            residual=scores.residuals[served],
            held_out_error=scores.errors.get(served, float("nan")),
            candidate_errors=scores.errors,
            seconds=seconds,
            inr_iterations=task.prior_steps,
            network_weight=selection.weight,
            why="; ".join(filter(None, (why, whose))),
            merged=task.learned is not None and task.learned.still > 0.0,
            still=float("nan") if task.learned is None else task.learned.still,
            drift=drift_um(task.learned, self.header),
            runtime=self.engine.name if self._runtime is not None and not (spared or effort == 2) else "",
            effort=effort,
            uncertainty=download(spread) if spread is not None and self.config.uncertainty else None,
            uncertainty_map=None if spread is None else uncertainty_map(spread),
            confidence=sure,
            age=None if task.learned is None else age_map(task.learned.age),
            slots=sweep.slots,
            alarms=alarms,
            symptoms=watched.symptoms,
        )

    def _cross_validate(self, task: Task) -> bool:
        """Hold the network against slabs that are left out, where that is due; return whether."""
        findings, config = task.session.findings, self.config
        if self._runtime is None or not config.fallback or config.method != "mdd":
            return False
        if task.lane == "rolling" or task.effort > 0 or findings.borne_out is not None:
            return False
        if task.session.sweeps % _TEST_EVERY and findings.left_out_errors:
            return False
        found = self._held_against(task, self._network(task))
        if found is None:
            return False
        whose = self.engine.belonging
        if self._rival is not None and whose is not None and not task.session.sweeps:
            other = self._held_against(task, self._runtime if findings.general else self._rival)
            if other is not None:
                switched = rivals.compare(findings, whose, found.told, other.told, "slabs left out")
                found = other if switched else found
        findings.left_out, findings.left_out_errors = found.share, found.errors
        return True

    def _held_against(self, task: Task, network: Runtime | None) -> CrossValidated | None:
        """Return what a sweep says of a network's answers to parts of it."""
        engine = replace(self.engine, runtime=network, belonging=None, general=None)
        config = self.config.model_copy(update={"fallback": False, "cuda_graphs": False})

        def answers(header: RunHeader, sweep: Sweep) -> tuple[Tensors, float]:
            return Reconstructor(header, config, engine).alone(sweep)

        return cross_validated(task.sweep, self.header, answers)

    def alone(self, sweep: Sweep) -> tuple[Tensors, float]:
        """Return the answers to a session's first sweep, of one evaluation, and its noise.

        Volumes (Z, Y, X) by name, counts, and a variance, counts².
        """
        clock = Clock(self.device)
        task = self._normaliser.task(sweep, "sweep", 1)
        update, given, _ = self._given(task, clock, 1)
        answers = self._updated(task, update, given, clock)
        del answers[SCORES]
        low, span = task.session.low, task.session.span
        noise = float(task.variance.mean()) * span**2
        return {name: volume * span + low for name, volume in answers.items()}, noise

    def _given(self, task: Task, clock: Clock, effort: int) -> tuple[Update, Tensors, dict[str, float]]:
        """Return the update of a sweep, its inputs, and the seconds of the reference's stages."""
        geometry, method = task.geometry, self.config.method
        update = self._update(geometry, effort, self._network(task))
        given = {
            "images": task.images,
            "variance": task.variance,
            "floor": torch.full((), task.floor, device=self.device),
            "closed": geometry.tikhonov,
        }
        if task.held is not None and task.held_variance is not None and task.held_operator is not None:
            given |= {
                "held": task.held,
                "held_variance": task.held_variance,
                "held_operator": task.held_operator,
            }
        if method in ("linear", "tikhonov"):
            return update, given, {}
        if method == "microdiffusion":
            given["prior"], task.prior_steps, seconds = self._reference(task)
            clock.lap("reference")
            return update, given, seconds
        given["prior"] = sweep_prior(task)
        if task.light is not None:
            given["light"] = task.light
        if "mdd" in update.names:
            given |= {"deviation": prior_deviation(task), "leeway": prior_leeway(task)}
        clock.lap("inr")
        return update, given, {}

    def _network(self, task: Task) -> Runtime | None:
        """Return the network that serves a session."""
        return self._rival if self._rival is not None and task.session.findings.general else self._runtime

    def _update(self, geometry: Geometry, effort: int, network: Runtime | None) -> Update:
        settings = UpdateSettings.of(self.config, effort)
        key = geometry, settings, network is self._rival
        update = self._updates.get(key)
        if update is None:
            update = Update(geometry, settings, network, self._noise)
            if len(self._updates) >= _MOST_UPDATES:
                del self._updates[next(iter(self._updates))]
            self._updates[key] = update
        return update

    def _rival_claim(self, task: Task, given: Tensors, clock: Clock) -> Claim | None:
        """Return the claim of the network that does not serve, where it is asked, too.

        Before the one that serves: answers of a recorded graph are valid until the next one.
        """
        if self._rival is None or not rivals.due(task) or "deviation" not in given:
            return None
        other = self._runtime if task.session.findings.general else self._rival
        update = self._update(task.geometry, task.effort, other)
        return rivals.claim_of(task, self._updated(task, update, given, clock))

    def _updated(self, task: Task, update: Update, given: Tensors, clock: Clock) -> Tensors:
        """Return the update's answers and scores, on CUDA from a recorded graph where there is one."""
        runtime = self._runtime  # that of a rival can do the same
        # A rolling window has as many geometries as projections: they would displace the graphs of the
        # sweeps.
        lasting = task.lane != "rolling"
        if self._graphs is not None and runtime is not None and runtime.capturable and lasting:
            # Valid until the next sweep's replay: by then scores and volume are on the host.
            replayed = self._graphs(update, update, given)
            if replayed is not None:
                clock.lap("sampler")  # with consistency and scores: a graph is one stage
                return dict(replayed)
        return update(given, clock.lap)

    def _serve(self, task: Task, answers: dict[str, Tensor], scores: Scores) -> Selection:
        """Return the answer to serve; a blend joins answers and scores."""
        own = next(iter(scores.residuals))
        findings = task.session.findings
        if not self.config.fallback or len(answers) == 1:
            return Selection(own, float(own == "mdd"), own)
        selection = select(own, findings, scores)
        if selection.served == "blend":
            fallback, weight = selection.fallback, selection.weight
            answers["blend"] = torch.lerp(answers[fallback], answers["mdd"], weight)
            scores.blend("blend", "mdd", fallback, weight)
        return selection

    def _reference(self, task: Task) -> tuple[Tensor, int, dict[str, float]]:
        """Return the reference's volume (normalised), trained for the sweep, its INR's updates, seconds."""
        # Imported only here: the other methods do not pay for it.
        from microdiffusion.engines.reference import ReferenceMethod

        sweep = task.sweep
        session = (sweep.channel, sweep.position)
        if session not in self._references:
            self._references[session] = ReferenceMethod(
                self.config.reference,
                self.header.shape,
                self.device,
                seed=self.config.seed,
                progress=self._report,
            )
        centres = self.header.centres_of(sweep.stage)
        answer = self._references[session].reconstruct(task.geometry.operator, centres, task.images)
        return answer.volume, answer.inr_steps, answer.seconds
