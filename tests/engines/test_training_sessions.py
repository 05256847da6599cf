"""The sessions that a network is trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from microdiffusion.engines.training import degrade, histories
from microdiffusion.engines.training.data import SIZE
from microdiffusion.engines.training.degrade import CUBES, Group, make_group
from microdiffusion.engines.training.histories import MOST_EARLIER, earlier_sweeps, random_history


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    """Return cubes of blobs."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal((6, SIZE, SIZE, SIZE)).astype(np.float32))
    for _ in range(3):
        noise = torch.nn.functional.avg_pool3d(noise, 5, stride=1, padding=2)
    bright = (noise / noise.std() - 0.5).clamp(0, 2) / 2
    return bright.numpy().astype(np.float16)


def group_after(earlier: int, kind: str, pool: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Group:
    """Return the group of a session of so many earlier sweeps, whose specimen does one kind of thing."""
    monkeypatch.setattr(degrade, "earlier_sweeps", lambda rng: earlier)
    monkeypatch.setattr(degrade, "random_offsets", lambda rng: "golden")
    monkeypatch.setattr(degrade, "random_optics", lambda rng: (6.0, 8.0, 1.0))
    monkeypatch.setattr(histories, "_KINDS", {kind: 1.0})
    return make_group(pool, np.random.default_rng(3))


def error(group: Group) -> float:
    return float((group.prior - group.truth).square().mean().sqrt())


def test_a_session_of_many_sweeps_knows_more_and_says_so(
    pool: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, tenth = (group_after(earlier, "still", pool, monkeypatch) for earlier in (0, 9))
    assert first.prior.shape == first.deviation.shape == (CUBES, SIZE, SIZE, SIZE)
    assert error(tenth) < 0.6 * error(first)
    assert float(tenth.deviation.mean()) < 0.8 * float(first.deviation.mean())
    assert float(first.deviation.min()) > 0.0


def test_what_has_just_appeared_is_known_less(pool: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    still, replaced = (group_after(9, kind, pool, monkeypatch) for kind in ("still", "replaced"))
    middle = slice(SIZE // 4, 3 * SIZE // 4)

    def differs(group: Group) -> float:
        """Return how much the deviation differs between the pixels of a slice."""
        return float(group.deviation[:, middle].std(dim=(2, 3)).mean())

    assert differs(replaced) > 2.0 * differs(still)


def test_projections_are_those_of_the_last_sweep(pool: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("active", "replaced", "drifting"):
        group = group_after(5, kind, pool, monkeypatch)
        seen = torch.einsum("mz,bzyx->bmyx", group.operator, group.truth)
        misfit = (group.projections - seen).square().mean().sqrt()
        assert float(misfit) < 2.0 * float(group.variance.mean().sqrt()), kind


@pytest.mark.parametrize("kind", ["still", "active", "replaced", "drifting"])
def test_a_history_ends_with_the_cubes_as_they_were_drawn(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "_KINDS", {kind: 1.0})
    generator = torch.Generator().manual_seed(1)
    cubes, others = (0.1 + torch.rand(2, 16, 16, 16, generator=generator) for _ in range(2))

    def change(history: histories.History, ago: int) -> Tensor:
        return (history(ago) - cubes).abs().amax()

    changed = []
    for seed in range(8):
        history = random_history(np.random.default_rng(seed), cubes, others, 6)
        assert float(change(history, 0)) < 1e-5
        changed.append(max(float(change(history, ago)) for ago in range(1, 7)) > 1e-3)
    assert all(changed) == (kind != "still")  # some of these bleach


def test_light_is_never_negative_however_many_spots_dim_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "_KINDS", {"active": 1.0})
    cubes = torch.ones(1, 6, 6, 6)  # so small that spots overlap
    for seed in range(300):
        history = random_history(np.random.default_rng(seed), cubes, cubes, 4)
        light = torch.stack([history(ago) for ago in range(5)])
        assert float(light.min()) > 0.0, seed
        assert float(light.max()) < 200.0, seed


def test_half_of_all_sweeps_are_the_first_of_their_session() -> None:
    rng = np.random.default_rng(0)
    earlier = np.array([earlier_sweeps(rng) for _ in range(4000)])
    assert 0.45 < float((earlier == 0).mean()) < 0.55
    assert earlier.max() == MOST_EARLIER
