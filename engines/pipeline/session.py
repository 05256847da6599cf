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
    """A session as plain data: numbers (JSON, to the last bit) and tensors by name."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    def on_the_host(self) -> State:
        """Return it with all tensors on the CPU: good for whatever happens to a GPU."""
        return State(self.numbers, {name: tensor.detach().cpu() for name, tensor in self.tensors.items()})


@dataclass(slots=True, eq=False)
class Session:
    """What is kept from sweep to sweep.

    Attributes
    ----------
    low, span : float
        Counts that are 0 in normalised units, and counts of one unit.
    prior : SessionPrior
    findings : Findings
        About the network, for the judge.
    sweeps : int
        Reconstructed so far.
    white_share : float
        Of the fine structure of the projections, what is noise and not texture; see `noise.white_share`.
    last_two : list of Seen
        The sweeps before, in counts, the last one last; empty where sweeps are not merged.
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
        """Of what it keeps."""
        return self.prior.nbytes + sum(each.images.nbytes + each.variance.nbytes for each in self.last_two)

    def state(self) -> State:
        """Return all of it as plain data."""
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
        """Return the session that `state` was taken of; `prior` is a cold one and takes over its part.

        Raises
        ------
        KeyError, TypeError, ValueError
            The state is not one of such a session.
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
        """Return one of the last two sweeps by its number, None where it is not there."""
        return next((each for each in self.last_two if each.sweep == number), None)


def light_range(counts: NDArray[np.float32]) -> tuple[float, float]:
    """Return what is dark, and how far it is from there to what is bright; of the host's own copy."""
    low, high = (float(v) for v in np.percentile(counts, [1.0, 99.9]))
    return low, max(high - low, 1e-3 * abs(high), 1e-6)
