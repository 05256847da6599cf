"""The implicit field: what a fit finds, when it stops, when a session chooses anew, and what it is spared."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from microdiffusion.config.engine_tables import InrConfig
from microdiffusion.engines.inr import field as inr
from microdiffusion.engines.inr import solver as solver
from microdiffusion.engines.inr.field import SessionInr, axial_basis
from microdiffusion.engines.inr.selection import SessionPrior, View, signal_share
from microdiffusion.engines.inr.solver import Columns, before_softplus
from microdiffusion.engines.projections.closed_form import along_z, interpolation_matrix, tikhonov_matrix
from microdiffusion.optics import AxialProfile, projection_operator, sweep_positions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SHAPE = (36, 48, 48)
LENGTH = 6.0
NOISE = 0.01
BANDWIDTH = 0.4 / LENGTH


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def neurites(seed: int = 0, *, moved: float = 0.0, dimmed: float = 1.0) -> Tensor:
    """Return oblique tubes (Z, Y, X), which have moved across by some pixels and been dimmed."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij")
    volume = np.zeros(SHAPE, np.float32)
    for _ in range(8):
        place = rng.uniform(0, 1, 3) * SHAPE
        way = rng.normal(size=3)
        way /= np.linalg.norm(way)
        offset = np.stack([z - place[0], y - place[1], x - place[2] - moved])
        along = np.tensordot(way, offset, 1)
        volume = np.maximum(volume, np.exp(-((offset**2).sum(0) - along**2) / 4.5))
    return torch.from_numpy(np.asarray(dimmed * volume, dtype=np.float32))


def operator_of(step: float = 6.0, offset: float = 0.0) -> np.ndarray:
    z = sweep_positions(
        length_um=LENGTH, step_um=step, z0_um=0.0, voxel_z_um=1.0, shape_z=SHAPE[0], offset_um=offset
    )
    return projection_operator(z, AxialProfile.box(LENGTH), z0_um=0.0, voxel_z_um=1.0, shape_z=SHAPE[0])


def view_of(truth: Tensor, seed: int = 0, *, held: bool = True, noise: float = NOISE) -> View:
    """Return a sweep of a truth as the reconstructor shows it to the prior."""
    matrix = operator_of()
    operator = torch.from_numpy(matrix.astype(np.float32))
    generator = torch.Generator().manual_seed(seed)
    images = along_z(operator, truth)
    images = images + noise * torch.randn(images.shape, generator=generator)
    view = View(
        operator,
        images,
        torch.full_like(images, noise**2),
        torch.from_numpy(tikhonov_matrix(matrix, 0.03).astype(np.float32)),
    )
    if not held:
        return view
    between = torch.from_numpy(operator_of(offset=3.0)[2:3].astype(np.float32))
    seen = along_z(between, truth)
    return replace(
        view, held_operator=between, held=seen + noise * torch.randn(seen.shape, generator=generator)
    )


def prior_of(**options: object) -> SessionPrior:
    return SessionPrior(
        SHAPE,
        InrConfig(**options),  # type: ignore[arg-type]
        bandwidth=BANDWIDTH,
        device=torch.device("cpu"),
        name="session",
    )


def error(volume: Tensor, truth: Tensor) -> float:
    return float((volume - truth).square().mean().sqrt())


# The field ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [0.03, 0.07, 0.2])
def test_the_axial_basis_is_a_kernel_as_wide_as_the_bandwidth_says(bandwidth: float) -> None:
    basis = axial_basis(64, bandwidth, 64).double()
    kernel = basis @ basis.T
    assert torch.allclose(kernel.diagonal(), torch.ones(64, dtype=torch.float64), atol=1e-4)
    period = 2 * np.pi * bandwidth
    assert float(kernel[20, 24]) == pytest.approx((1 + 4 * period) * np.exp(-4 * period), abs=1e-4)


@pytest.mark.parametrize(("slices", "rank"), [(32, 12), (64, 23), (130, 46), (256, 90)], ids=str)
def test_deeper_volumes_get_more_basis_functions(slices: int, rank: int) -> None:
    assert axial_basis(slices, BANDWIDTH).shape == (slices, rank)


def test_a_basis_of_fewer_functions_is_the_best_of_that_rank() -> None:
    full, few = axial_basis(64, BANDWIDTH, 64), axial_basis(64, BANDWIDTH, 32)
    assert few.shape == (64, 32)
    assert float((full @ full.T - few @ few.T).abs().max()) < 0.02


def test_before_softplus_is_its_inverse() -> None:
    field = torch.logspace(-3, 1, 50)
    back = torch.nn.functional.softplus(before_softplus(field), beta=solver.SHARPNESS)
    assert torch.allclose(back, field, rtol=1e-3)


@pytest.mark.parametrize("kind", ["dark", "closed form"])
def test_a_fit_explains_the_projections_and_no_more_than_that(kind: str) -> None:
    truth = neurites()
    view = view_of(truth)
    start = along_z(view.closed, view.images) if kind == "closed form" else None
    field = SessionInr(SHAPE, bandwidth=BANDWIDTH)
    fit = field.fit(view.operator, view.images, view.variance, floor=0.0, steps=12, target=0.8, start=start)
    assert fit.chi_square <= 0.8
    assert fit.steps <= 4
    volume = field.volume(0.0)
    left = (along_z(view.operator, volume) - view.images).square().mean() / NOISE**2
    assert float(left) == pytest.approx(fit.chi_square, rel=1e-3)
    assert float(volume.min()) >= 0.0
    linear = torch.from_numpy(interpolation_matrix(np.arange(6) * 6 + 2.5, SHAPE[0]).astype(np.float32))
    assert error(volume, truth) < error(along_z(linear, view.images).clamp_min(0.0), truth)


def test_no_step_makes_any_pixel_worse() -> None:
    view = view_of(neurites(), noise=0.003)
    columns = Columns(
        view.operator,
        axial_basis(SHAPE[0], BANDWIDTH, 32),
        view.images.flatten(1),
        view.variance.flatten(1),
    )
    fitted = columns.closed_form()
    for number in range(6):
        before = fitted.cost.clone()
        if number < 2:
            fitted = columns.simplified_newton_step(fitted)
        else:
            fitted = columns.gauss_newton(fitted, columns.active(fitted, 0.05))
        assert bool((fitted.cost <= before).all())
        assert float(fitted.cost.mean()) < float(before.mean())


def test_pixels_are_independent_and_so_is_the_size_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(neurites(), noise=0.003)

    def planes(part: slice) -> Tensor:
        field = SessionInr((SHAPE[0], SHAPE[1], len(range(SHAPE[2])[part])), bandwidth=BANDWIDTH)
        every = view.images[:, :, part].contiguous(), view.variance[:, :, part].contiguous()
        field.fit(view.operator, *every, floor=0.0, steps=4, target=0.0)
        assert field.planes is not None
        return field.planes

    whole = planes(slice(None))
    monkeypatch.setitem(solver._CHUNK, "cpu", 100)
    assert torch.allclose(planes(slice(8, 24)), whole[:, :, 8:24], atol=1e-4)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_steps_are_an_upper_bound(steps: int) -> None:
    view = view_of(neurites(), noise=0.001)
    fit = SessionInr(SHAPE, bandwidth=BANDWIDTH).fit(
        view.operator, view.images, view.variance, floor=0.0, steps=steps, target=0.0
    )
    assert fit.steps == steps


def test_a_deadline_that_has_passed_leaves_the_closed_form() -> None:
    view = view_of(neurites(), noise=0.001)
    field = SessionInr(SHAPE, bandwidth=BANDWIDTH)
    fit = field.fit(view.operator, view.images, view.variance, floor=0.0, steps=12, target=0.0, seconds=0.0)
    assert fit.steps == 0
    assert torch.isfinite(field.volume(0.0)).all()


def test_a_volume_needs_a_fit() -> None:
    with pytest.raises(RuntimeError, match="not fitted"):
        SessionInr(SHAPE, bandwidth=BANDWIDTH).volume(0.0)


# From sweep to sweep ------------------------------------------------------------------------------


def _fit(field: SessionInr, view: View, target: float) -> inr.InrFit:
    return field.fit(view.operator, view.images, view.variance, floor=0.0, steps=12, target=target)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(neurites(moved=0.5, dimmed=0.97), id="slowly changing"),
        pytest.param(neurites(seed=5), id="another specimen"),
        pytest.param(torch.zeros(SHAPE), id="nothing left"),
        pytest.param(neurites(dimmed=0.2), id="suddenly dim"),
    ],
)
def test_a_warm_field_is_never_worse_than_a_cold_one(second: Tensor) -> None:
    view = view_of(second, seed=1, noise=0.003)
    warm, cold = (SessionInr(SHAPE, bandwidth=BANDWIDTH) for _ in range(2))
    _fit(warm, view_of(neurites(), noise=0.003), 0.1)
    warm_fit, cold_fit = _fit(warm, view, 0.1), _fit(cold, view, 0.1)
    assert warm_fit.chi_square <= max(0.1, 1.05 * cold_fit.chi_square)
    assert warm_fit.steps <= cold_fit.steps + 1
    assert error(warm.volume(0.0), second) < 1.03 * error(cold.volume(0.0), second) + 1e-4


# The session --------------------------------------------------------------------------------------


def test_a_sparse_specimen_starts_dark_where_a_held_out_projection_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth = neurites()
    with caplog.at_level(logging.INFO, "microdiffusion.engines"):
        blind, judged = prior_of(), prior_of()
        volumes = [prior.fit(view_of(truth, held=prior is judged)).volume for prior in (blind, judged)]
    assert (blind.dark, judged.dark) == (False, True)
    assert error(volumes[1], truth) < error(volumes[0], truth)
    assert "nothing held out to choose by" in caplog.messages[0]
    assert "chosen by the held-out projection" in caplog.messages[1]


def test_a_bandwidth_that_was_set_is_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    prior = prior_of(bandwidth_z=0.05)
    with caplog.at_level(logging.INFO, "microdiffusion.engines"):
        prior.fit(view_of(neurites()))
    assert (prior.bandwidth, prior.dark) == (0.05, False)
    assert "as engine.inr.bandwidth_z says" in caplog.text


def test_the_first_held_out_projection_chooses_whenever_it_comes() -> None:
    prior = prior_of()
    for number in range(3):
        prior.fit(view_of(neurites(), number, held=number == 2))
        assert prior.dark == (number == 2)


def test_a_part_of_the_pixels_is_enough_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = neurites()
    whole = prior_of()
    whole.fit(view_of(truth))
    monkeypatch.setattr("microdiffusion.engines.inr.selection._PIXELS", 500)
    part = prior_of()
    part.fit(view_of(truth))
    assert (part.dark, part.bandwidth) == (whole.dark, whole.bandwidth)


def _others(sweeps: list[Tensor], caplog: pytest.LogCaptureFixture) -> tuple[SessionPrior, int]:
    """Return the session after these sweeps, and how often it saw another specimen."""
    prior = prior_of()
    with caplog.at_level(logging.INFO, "microdiffusion.engines"):
        for number, truth in enumerate(sweeps):
            prior.fit(view_of(truth, number))
    return prior, sum("another one" in message for message in caplog.messages)


def test_another_specimen_is_noticed_once_and_the_field_chosen_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    smooth = torch.linspace(0.3, 0.7, SHAPE[2]).expand(SHAPE).clone()
    smooth += 0.2 * torch.linspace(0.0, 6.0, SHAPE[1]).sin()[:, None]
    prior, times = _others([neurites()] * 2 + [smooth] * 3, caplog)
    assert times == 1
    fresh = prior_of()
    view = view_of(smooth, 9)
    assert torch.allclose(prior.fit(view).volume, fresh.fit(view).volume, atol=0.01)
    assert prior.dark == fresh.dark


@pytest.mark.parametrize(
    "sweeps",
    [
        pytest.param(
            [neurites(moved=0.5 * t, dimmed=0.95**t) for t in range(4)], id="drifting and bleaching"
        ),
        pytest.param([torch.zeros(SHAPE)] * 4, id="nothing there"),
        pytest.param([torch.full(SHAPE, 0.5)] * 4, id="uniform"),
    ],
)
def test_a_specimen_that_changes_slowly_is_the_same_one(
    sweeps: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    assert _others(sweeps, caplog)[1] == 0


def test_some_columns_are_fitted_as_all_are() -> None:
    view = view_of(neurites(), held=False)
    pixels = torch.tensor([3, 17, 18, SHAPE[1] * SHAPE[2] - 1])
    prior = prior_of()
    some = prior.fit_columns(view, pixels).volume[:, 0]
    every = prior_of().fit(view).volume.flatten(1)[:, pixels]
    assert error(some, every) < 0.1 * NOISE
    assert not prior.warm


def test_projections_in_which_nothing_stands_out_are_dark() -> None:
    truth = neurites()
    truth[:12] = 0.0
    view = view_of(truth)
    assert signal_share(view.images, view.variance).flatten().tolist() == [0, 0, 1, 1, 1, 1]
    volume = prior_of().fit(view).volume
    assert float(volume[:11].max()) < 0.1 * NOISE


@pytest.mark.parametrize(("height", "width"), [(8.0, 1), (2.0, 7), (0.7, 25)], ids=["point", "spot", "haze"])
def test_a_projection_with_anything_in_it_is_not_dark(height: float, width: int) -> None:
    images = NOISE * torch.randn((1, 64, 64), generator=torch.Generator().manual_seed(0))
    assert float(signal_share(images, torch.full_like(images, NOISE**2))) == 0.0
    images[:, 20 : 20 + width, 20 : 20 + width] += height * NOISE
    assert float(signal_share(images, torch.full_like(images, NOISE**2))) > 0.2


@pytest.mark.parametrize(
    ("options", "received", "expected"),
    [
        ({}, (0.0, 0.0), float("inf")),
        ({"deadline_s": 0.2}, (0.0, 0.0), 0.2),
        ({}, (10.0, 12.0), 0.5),
        ({"deadline_s": 0.2}, (10.0, 12.0), 0.2),
        ({"deadline_s": 3.0}, (10.0, 12.0), 0.5),
    ],
    ids=["a file", "configured", "live", "configured is shorter", "live is shorter"],
)
def test_a_fit_has_a_quarter_of_the_time_between_sweeps(
    options: dict[str, float],
    received: tuple[float, float],
    expected: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[float] = []
    fit = SessionInr.fit

    def spy(self: SessionInr, *arguments: Tensor, seconds: float, **more: object) -> inr.InrFit:
        given.append(seconds)
        return fit(self, *arguments, seconds=seconds, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(SessionInr, "fit", spy)
    prior = prior_of(**options)
    for number, moment in enumerate(received):
        prior.arrived(moment)
        prior.fit(view_of(neurites(), number, held=False))
    assert given[-1] == pytest.approx(expected)


def test_steps_away_from_the_cpu_never_wait_for_the_host() -> None:
    # Tensors without data, on a device that is not the CPU: whatever asks for a value raises.
    with torch.device("meta"):
        columns = Columns(torch.rand(6, 36), torch.rand(36, 16), torch.rand(6, 300), torch.rand(6, 300))
    fitted = columns.simplified_newton_step(columns.closed_form())
    fitted = columns.gauss_newton(fitted, columns.active(fitted, 0.1))
    assert (fitted.planes.device.type, fitted.planes.shape) == ("meta", (16, 300))
    with pytest.raises(RuntimeError):
        float(fitted.chi.mean())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_fits_what_a_cpu_fits() -> None:
    view = view_of(neurites(), noise=0.003)
    volumes = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        field = SessionInr(SHAPE, bandwidth=BANDWIDTH, device=device)
        arguments = (each.to(device) for each in (view.operator, view.images, view.variance))
        field.fit(*arguments, floor=0.0, steps=4, target=0.0)
        volumes.append(field.volume(0.0).cpu())
    assert error(volumes[0], volumes[1]) < 0.01
