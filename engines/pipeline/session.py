"""The state of a session (a channel and position) between sweeps.

Its normalisation, its prior, what was found about the network, and the sweeps before. Bounded memory whatever
the number of sweeps. Runs on the reconstructor's thread.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from microdiffusion.engines.projections import Seen
from microdiffusion.engines.trust import DEFAULT_SCALE, Findings

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from microdiffusion.engines.inr import SessionPrior


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A session as plain data: numbers (JSON, exact) and tensors by name."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    def on_the_host(self) -> State:
        """Return it with all tensors on the CPU."""
        return State(self.numbers, {name: tensor.detach().cpu() for name, tensor in self.tensors.items()})


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
        Share of noise in the fine structure of the projections; see `noise.white_share`.
    last_two : list of Seen
        The last two sweeps, in counts, the newest last; empty where sweeps are not merged.
    error_scale : float
        See `uncertainty.scale`.
    """

    low: float
    span: float
    prior: SessionPrior
    findings: Findings = field(default_factory=Findings)
    sweeps: int = 0
    white_share: float = 1.0
    last_two: list[Seen] = field(default_factory=list)
    error_scale: float = DEFAULT_SCALE

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        return self.prior.nbytes + sum(each.images.nbytes + each.variance.nbytes for each in self.last_two)

    def state(self) -> State:
        """Return it as plain data."""
        numbers: dict[str, Any] = {
            "low": self.low,
            "span": self.span,
            "sweeps": self.sweeps,
            "white_share": self.white_share,
            "findings": asdict(self.findings),
            "seen": [each.sweep for each in self.last_two],
            "error_scale": self.error_scale,
        }
        prior, tensors = self.prior.state()
        for place, each in enumerate(self.last_two):
            tensors |= {f"seen_{place}_{name}": tensor for name, tensor in each.tensors().items()}
        return State(numbers | {"prior": prior}, tensors)

    @classmethod
    def of(cls, state: State, prior: SessionPrior, device: torch.device) -> Session:
        """Return the session of a state; `prior` is a cold one and is loaded from it.

        Raises
        ------
        KeyError, TypeError, ValueError
            The state does not fit.
        """
        numbers = state.numbers
        prior.load(numbers["prior"], state.tensors)
        session = cls(
            float(numbers["low"]),
            float(numbers["span"]),
            prior,
            Findings(**numbers["findings"]),
            int(numbers["sweeps"]),
            float(numbers["white_share"]),
            error_scale=float(numbers["error_scale"]),
        )
        for place, number in enumerate(numbers["seen"]):
            start = f"seen_{place}_"
            parts = {
                name.removeprefix(start): each
                for name, each in state.tensors.items()
                if name.startswith(start)
            }
            session.last_two.append(Seen.of(int(number), parts, device))
        return session

    def seen(self, number: int) -> Seen | None:
        """Return one of the last two sweeps by its number, or None."""
        return next((each for each in self.last_two if each.sweep == number), None)


def light_range(counts: NDArray[np.float32]) -> tuple[float, float]:
    """Return the dark level of counts and the span from there to the bright level."""
    low, high = (float(v) for v in np.percentile(counts, [1.0, 99.9]))
    return low, max(high - low, 1e-3 * abs(high), 1e-6)
