"""The state of a session (a channel and position) between sweeps.

Its normalisation, its prior, what was found about the network, and what its sweeps have taught. Bounded
memory whatever the number of sweeps. Runs on the reconstructor's thread.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from microdiffusion.engines.inr import SessionField, SessionPrior
from microdiffusion.engines.trust import Claim, Findings, Glance


@dataclass(frozen=True, slots=True, eq=False)
class FrozenState:
    """A session as plain data: numbers (JSON, exact) and tensors by name."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    def on_the_host(self) -> FrozenState:
        """Return it with all tensors on the CPU."""
        return FrozenState(
            self.numbers, {name: tensor.detach().cpu() for name, tensor in self.tensors.items()}
        )


@dataclass(slots=True, eq=False)
class Session:
    """The state of a channel and position.

    Attributes
    ----------
    low, span : float
        Counts at 0 in normalised units, and counts per unit.
    findings : Findings
        About the network.
    sweeps : int
        Number reconstructed so far.
    white_share : float
        Of the fine structure of the projections, what is noise and not texture; see `noise.white_share`.
    noise : float or None
        Its variance in the last sweep, counts²; None before, and where the camera's gain is known.
    field : SessionField or None
        What all sweeps say; None where every sweep stands alone.
    scores : tuple of quantiles
        Of the latest held-out projections: see `trust/intervals.py`.
    claim : Claim or None
        Of the network in the last sweep; None where it was not asked.
    rival_claim : Claim or None
        Of the other network, where two were asked; see `rivals.py`. A session from disk has none.
    places : tuple of depths
        Of the slabs of the last two sweeps, slices.
    watched : dict
        Symptoms of the last sweeps by name, oldest first; see `watch.py`. Never changed in place.
    glance : Glance or None
        At the last sweep. A session from disk has none.
    """

    low: float
    span: float
    prior: SessionPrior
    findings: Findings = field(default_factory=Findings)
    watched: dict[str, list[float]] = field(default_factory=dict)
    sweeps: int = 0
    white_share: float = 1.0
    noise: float | None = None
    field: SessionField | None = None
    scores: tuple[tuple[float, ...], ...] = ()
    claim: Claim | None = None
    rival_claim: Claim | None = None
    places: tuple[tuple[float, ...], ...] = ()
    glance: Glance | None = None

    @property
    def _parts(self) -> tuple[SessionPrior | SessionField | Claim | Glance | None, ...]:
        return self.prior, self.field, self.claim, self.rival_claim, self.glance

    @property
    def nbytes(self) -> int:
        """Of what it keeps."""
        return sum(each.nbytes for each in self._parts if each is not None)

    def in_another_range(self, low: float, span: float, prior: SessionPrior) -> Session:
        """Return the session of the same specimen with another normalisation, and an empty prior.

        What has a unit of its own, or none, outlasts it; what is normalised does not.
        """
        return replace(
            self,
            low=low,
            span=span,
            prior=prior,
            findings=self.findings.in_another_range(),
            sweeps=0,
            white_share=1.0,
            claim=None,
            rival_claim=None,
        )

    def copy(self) -> Session:
        """Return an independent session."""
        return replace(
            self,
            prior=self.prior.copy(),
            findings=replace(self.findings),
            field=None if self.field is None else self.field.copy(),
        )

    def state(self) -> FrozenState:
        """Return it as plain data."""
        numbers: dict[str, Any] = {
            "low": self.low,
            "span": self.span,
            "sweeps": self.sweeps,
            "white_share": self.white_share,
            "noise": self.noise,
            "findings": asdict(self.findings),
            "scores": [list(each) for each in self.scores],
            "places": [list(each) for each in self.places],
            "watched": self.watched,
        }
        prior, tensors = self.prior.state()
        if self.field is not None and self.field.estimator.sweeps:
            numbers["field"], learned = self.field.state()
            tensors |= learned
        if self.claim is not None:
            claim = self.claim
            numbers["claim"] = {
                "every": claim.every,
                "shift": list(claim.shift),
                "brightness": claim.brightness,
            }
            tensors |= {"claim_prior": claim.prior, "claim_correction": claim.correction}
        return FrozenState(numbers | {"prior": prior}, tensors)

    @classmethod
    def of(cls, state: FrozenState, prior: SessionPrior, learned: SessionField | None) -> Session:
        """Return the session of a state; `prior` and `learned` are new ones and take over their parts.

        Raises
        ------
        KeyError, TypeError, ValueError
            The state does not fit.
        """
        numbers = state.numbers
        prior.load(numbers["prior"], state.tensors)
        if learned is not None and "field" in numbers:
            learned.load(numbers["field"], state.tensors)
        claim = None
        if "claim" in numbers:
            about = numbers["claim"]
            z, y, x = (float(each) for each in about["shift"])
            claim = Claim(
                state.tensors["claim_prior"],
                state.tensors["claim_correction"],
                int(about["every"]),
                (z, y, x),
                float(about["brightness"]),
            )
        return cls(
            float(numbers["low"]),
            float(numbers["span"]),
            prior,
            Findings(**numbers["findings"]),
            {str(name): [float(each) for each in past] for name, past in numbers["watched"].items()},
            int(numbers["sweeps"]),
            float(numbers["white_share"]),
            None if numbers["noise"] is None else float(numbers["noise"]),
            learned,
            scores=tuple(tuple(float(score) for score in each) for each in numbers["scores"]),
            claim=claim,
            places=tuple(tuple(float(depth) for depth in each) for each in numbers["places"]),
        )


def light_range(counts: NDArray[np.float32]) -> tuple[float, float]:
    """Return the dark level of counts and the span from there to the bright level."""
    low, high = (float(v) for v in np.percentile(counts, [1.0, 99.9]))
    return low, max(high - low, 1e-3 * abs(high), 1e-6)
