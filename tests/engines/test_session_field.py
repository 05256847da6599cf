"""A session that learns: sharper with every sweep of a still specimen, and true about what changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize
from support.session_scene import (
    HEADER,
    LENGTH,
    NOISE,
    SHAPE,
    Volume,
    psnr,
    run,
    session,
    specimen,
    spot,
    sweep_of,
)

from microdiffusion.config.models import EngineConfig
from microdiffusion.engines.inr.ages import by_age
from microdiffusion.engines.inr.changes import signal
from microdiffusion.engines.inr.covariance import NOISE_SHARES, AgeCovariances, banded, matern
from microdiffusion.engines.inr.estimator import Estimate, SessionEstimator
from microdiffusion.engines.inr.nonnegative import nonnegative
from microdiffusion.engines.inr.session_field import SessionField
from microdiffusion.engines.memory import session_bytes
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.pipeline.session_store import SessionStore
from microdiffusion.errors import GeometryError
from microdiffusion.frames import Reconstruction, StagePositions, Sweep
from microdiffusion.header import CameraNoise


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_still_specimen_sharpens_with_every_sweep() -> None:
    truth = specimen()
    results = run(lambda number: truth, 8)
    scores = [psnr(result, truth) for result in results]
    assert scores[5] > scores[0] + 3.0
    assert np.mean(scores[5:]) > np.mean(scores[2:5]) > np.mean(scores[:2])
    assert [result.merged for result in results] == [False] + [True] * 7
    assert results[7].still > 0.8


def test_a_spot_that_brightens_is_told_and_what_keeps_still_does_not_flicker() -> None:
    structure = specimen()
    bright = ndimage.maximum_filter(structure, 9) == structure
    inside = np.zeros(SHAPE, dtype=bool)
    inside[8:-8, 8:-8, 8:-8] = True
    z, y, x = (int(each) for each in np.argwhere(bright & inside & (structure > 0.4))[0])
    bump = spot((z, y, x))
    course = np.zeros(16)
    course[9:13] = (0.4, 1.0, 0.6, 0.3)
    course[14] = 0.8

    def truth(number: int) -> Volume:
        return structure * (1 + np.float32(course[number]) * bump)

    results = run(truth, 16)
    ball = spot((z, y, x)) > 0.6

    def trace(volumes: list[Volume], place: NDArray[np.bool_]) -> NDArray[np.float64]:
        light = np.array([volume[place].mean() for volume in volumes])
        return np.asarray(light / light[5:9].mean() - 1)[5:]

    true = trace([truth(number) for number in range(16)], ball)
    told = trace([result.volume for result in results], ball)
    assert np.corrcoef(true, told)[0, 1] > 0.85
    far = inside & (structure > 0.3) & (spot((z, y, x), 6.0) < 0.3)
    assert trace([result.volume for result in results], far).std() < 0.03


@pytest.mark.parametrize("by", [(5, 0, 0), (0, 4, -3), (3, 2, 1)], ids=["deeper", "sideways", "both"])
def test_a_jump_costs_nothing(by: tuple[int, int, int]) -> None:
    before = specimen()
    after = np.roll(before, by, (0, 1, 2))

    def truth(number: int) -> Volume:
        return before if number < 5 else after

    learned, alone = (run(truth, 10, memory) for memory in ("session", "sweep"))

    def score(result: Reconstruction, number: int) -> float:
        inside = slice(6, -6)  # neither what came into view nor what no slab sees
        error = (result.volume - truth(number))[inside, inside, inside]
        return float(-10 * np.log10(np.square(error).mean()))

    for number in range(10):
        assert score(learned[number], number) > score(alone[number], number) - 0.3, number
    assert score(learned[9], 9) > score(alone[9], 9) + 1.0


def test_another_specimen_costs_nothing() -> None:
    def truth(number: int) -> Volume:
        return specimen(seed=number // 5)

    learned, alone = (run(truth, 10, memory) for memory in ("session", "sweep"))
    for number in range(10):
        assert psnr(learned[number], truth(number)) > psnr(alone[number], truth(number)) - 0.3, number


def test_another_specimen_is_learned_as_if_it_were_the_first() -> None:
    # Texture without correlation along z, which held-out projections tell from noise; then something sparse.
    texture = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    sparse = 0.5 * specimen(seed=1) ** 2
    reconstructor, fresh = session("session"), session("session")
    for number in range(4):
        seen, between = sweep_of(texture, number), sweep_of(texture, number + 20)
        reconstructor.reconstruct(replace(seen, held_out_stage=between.stage, held_out=between.projections))
    for number in range(4, 9):
        sweep = sweep_of(sparse, number)
        result, expected = reconstructor.reconstruct(sweep), fresh.reconstruct(sweep)
        assert psnr(result, sparse) > psnr(expected, sparse) - 1.0, number


def test_an_offset_that_is_too_high_costs_a_session_little() -> None:
    # The level of no light is then the darkest pixel, and each sweep has another one.
    truth, scale, pedestal = specimen(), 1000.0, 100.0
    config = EngineConfig.model_validate({"method": "inr", "device": "cpu", "threads": 1})
    right, wrong = (
        Reconstructor(HEADER.model_copy(update={"camera": CameraNoise(offset=offset)}), config)
        for offset in (pedestal, 400.0)
    )
    scores = []
    for number in range(8):
        sweep = sweep_of(truth, number, scale)
        sweep = replace(sweep, projections=sweep.projections + np.float32(pedestal))
        results = [each.reconstruct(sweep) for each in (right, wrong)]
        above = [replace(result, volume=result.volume - np.float32(pedestal)) for result in results]
        scores.append([psnr(each, truth, scale) for each in above])
    assert scores[-1][1] > scores[-1][0] - 1.5
    assert scores[-1][1] > 34.5


def test_light_is_never_negative_and_none_is_added() -> None:
    rng, slices = np.random.default_rng(0), 24
    covariances = AgeCovariances(slices, bandwidth=0.07)
    covariances.amplitudes = (0.1, 0.1)
    matrix = np.kron(np.eye(3), np.full((1, 8), 1 / 8))
    (gain, *_) = covariances.advance(matrix, np.full(3, 1e-4), torch.device("cpu"))
    covariance = covariances.total(1)
    truth = np.maximum(rng.standard_normal((slices, 40)), 0.0) * (rng.random((slices, 40)) < 0.2)
    mean = (gain.gain[:, :3].double().numpy() + gain.gain[:, 3:].double().numpy()) @ matrix @ truth
    mean += np.linalg.cholesky(covariance) @ rng.standard_normal(mean.shape)
    found = nonnegative(torch.from_numpy(mean).float(), covariance).double().numpy()
    assert found.min() >= 0.0
    root = np.linalg.cholesky(np.linalg.inv(covariance)).T
    exact = np.stack([optimize.nnls(root, root @ column)[0] for column in mean.T], axis=1)
    clipped = mean.clip(min=0.0)
    assert np.abs(found - exact).mean() < 0.3 * np.abs(clipped - exact).mean()
    assert np.square(matrix @ (found - mean)).mean() < 0.1 * np.square(matrix @ (clipped - mean)).mean()
    kept = np.abs(mean) + 1.0
    np.testing.assert_allclose(nonnegative(torch.from_numpy(kept), covariance), kept)


def test_an_innovation_of_noise_teaches_little_and_one_of_structure_all() -> None:
    rng = np.random.default_rng(0)
    noise, predicted = torch.tensor([1e-4, 1e-4]), torch.tensor([1e-2, 1e-2])
    dark = torch.from_numpy(0.01 * rng.standard_normal((2, 32, 32))).float()
    bright = 10 * dark
    assert float(signal(dark, noise, predicted).square().mean() / dark.square().mean()) < 0.35
    assert float(signal(bright, noise, predicted).square().mean() / bright.square().mean()) > 0.98


@pytest.mark.parametrize("drift", [(0.1, 0.1, 0.0), (0.0, 0.5, -0.3)], ids=["slow", "sideways"])
def test_drift_is_followed(drift: tuple[float, float, float]) -> None:
    still = specimen()

    def truth(number: int) -> Volume:
        return ndimage.shift(still, np.array(drift) * number, order=3, mode="nearest")

    learned, alone = (run(truth, 12, memory) for memory in ("session", "sweep"))
    gain = [psnr(learned[n], truth(n)) - psnr(alone[n], truth(n)) for n in (9, 10, 11)]
    assert np.mean(gain) > 2.0
    found = learned[-1].drift
    np.testing.assert_allclose(
        [found.drift_z_um, found.drift_y_um, found.drift_x_um], np.array(drift) * 11, atol=0.5
    )


def test_bleaching_is_no_motion_along_z() -> None:
    still = specimen()

    def truth(number: int) -> Volume:
        return np.asarray(still * 0.92**number, dtype=np.float32)

    learned = run(truth, 10)
    assert max(abs(result.drift.drift_z_um) for result in learned[1:]) < 0.2
    assert psnr(learned[9], truth(9)) > psnr(learned[0], truth(0)) + 6.0


def test_a_nearly_empty_specimen_is_not_worse_for_what_was_learned() -> None:
    truth = np.maximum(spot((11, 9, 20), 1.0), spot((21, 22, 8), 1.0))
    learned, alone = (run(lambda number: truth, 10, memory) for memory in ("session", "sweep"))
    gain = [psnr(known, truth) - psnr(new, truth) for known, new in zip(learned, alone, strict=True)]
    assert min(gain) > -0.2
    assert np.mean(gain[5:]) > 2.0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_its_sweeps_matters_little_to_a_still_specimen(seed: int) -> None:
    truth, last = specimen(seed), []
    for order in (range(10), reversed(range(10))):
        reconstructor = session("session")
        results = [reconstructor.reconstruct(sweep_of(truth, number)) for number in order]
        last.append(psnr(results[-1], truth))
    assert abs(last[0] - last[1]) < 1.5
    assert min(last) > 35.5


def test_light_that_comes_where_it_was_dark_is_seen_at_once() -> None:
    before = np.asarray(spot((11, 9, 20), 1.5), np.float32)
    after = np.maximum(before, 0.5 * spot((20, 22, 8), 1.5))
    place = spot((20, 22, 8), 1.5) > 0.5

    def truth(number: int) -> Volume:
        return after if number >= 6 else before

    learned, alone = (run(truth, 10, memory) for memory in ("session", "sweep"))
    for number in range(6, 10):
        light = learned[number].volume[place].mean()
        assert light > 0.9 * alone[number].volume[place].mean(), number


def test_amplitudes_of_both_bands_are_found_in_the_first_sweep() -> None:
    rng, slices, columns = np.random.default_rng(0), 48, 4000
    covariances = AgeCovariances(slices, bandwidth=0.07)
    root = np.linalg.cholesky(matern(slices, 0.07) + 1e-9 * np.eye(slices))
    operator = np.array([np.arange(slices) // 6 == slab for slab in range(slices // 6)]) / 6
    noise = np.full(len(operator), NOISE**2)
    bands = [
        operator @ (amplitude * root @ rng.standard_normal((slices, columns)))
        + np.sqrt(NOISE**2 * share) * rng.standard_normal((len(operator), columns))
        for amplitude, share in zip((0.2, 0.02), NOISE_SHARES, strict=True)
    ]
    covariances.choose_amplitudes(operator, np.concatenate(bands), noise)
    assert covariances.amplitudes is not None
    broad, fine = covariances.amplitudes
    assert fine / broad == pytest.approx(0.1, rel=0.1)
    assert 0.1 < broad < 0.2  # smoother than the slabs say
    bands[1] = np.sqrt(NOISE**2 * NOISE_SHARES[1]) * rng.standard_normal(bands[1].shape)
    covariances.choose_amplitudes(operator, np.concatenate(bands), noise)
    assert covariances.amplitudes[1] < 0.1 * fine  # noise alone is no detail


def test_bands_add_up_and_share_the_noise() -> None:
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 200, 200)))
    broad, fine = banded(images).chunk(2)
    torch.testing.assert_close(broad + fine, images.flatten(1))
    assert [float(band.var()) for band in (broad, fine)] == pytest.approx(NOISE_SHARES, rel=0.03)


def test_a_session_that_was_put_aside_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    sweeps = [sweep_of(specimen(), number) for number in range(5)]
    through = session("session")
    expected = [through.reconstruct(sweep) for sweep in sweeps]
    for number, sweep in enumerate(sweeps):  # a new process for every sweep
        store = SessionStore(tmp_path)
        result = session("session", store).reconstruct(sweep)
        np.testing.assert_array_equal(result.volume, expected[number].volume)
        store.close()


def test_one_projection_changes_the_slices_about_its_slab() -> None:
    slices, rng = 96, np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random((slices, 8, 8)), (1.5, 0, 0)).astype(np.float32)
    estimator = SessionEstimator(truth.shape, bandwidth=0.07, reach=LENGTH)

    def take_in(first: list[int]) -> torch.Tensor:
        matrix = np.zeros((len(first), slices))
        for row, begin in enumerate(first):
            matrix[row, begin : begin + 6] = 1 / 6
        images = torch.from_numpy(np.tensordot(matrix, truth, 1).astype(np.float32))
        estimator.update(matrix, images, torch.full_like(images, NOISE**2), torch.ones_like(images))
        return estimator.expected

    for offset in (0, 4):
        before = take_in(list(range(offset, slices - 6, 8)))
    after = take_in([18])
    changed = (after != before).any(1).numpy()
    assert changed[18:24].all()
    assert not changed[48:].any()
    error = [float((each.unflatten(1, (8, 8)).numpy() - truth)[18:24].std()) for each in (before, after)]
    assert error[1] < error[0]


def test_what_comes_into_view_is_not_taken_for_dark() -> None:
    estimator = SessionEstimator((12, 4, 4), bandwidth=0.07, reach=4.0)
    matrix = np.zeros((2, 12))
    matrix[0, 0:4] = matrix[1, 4:8] = 1 / 4
    images = torch.full((2, 4, 4), 0.5)

    def take_in() -> torch.Tensor:
        variance = torch.full_like(images, 1e-4)
        return estimator.update(matrix, images, variance, torch.ones_like(images)).volume

    take_in()
    estimator.shift(-4, 0, 0)
    matrix = matrix[:, ::-1].copy()  # the slices that came into view are not looked at yet, then they are
    take_in()
    matrix = matrix[:, ::-1].copy()
    assert float(take_in()[:4].mean()) == pytest.approx(0.5, abs=0.1)


def test_where_no_slab_lay_before_nothing_is_new() -> None:
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random((24, 16, 16)), (3.0, 1, 1)).astype(np.float32)
    truth = (truth - truth.min()) / np.ptp(truth)
    estimator = SessionEstimator(truth.shape, bandwidth=0.07, reach=LENGTH)

    def take_in(first: list[int]) -> Estimate:
        matrix = np.zeros((len(first), 24))
        for row, begin in enumerate(first):
            matrix[row, begin : begin + 6] = 1 / 6
        images = torch.from_numpy(np.tensordot(matrix, truth, 1).astype(np.float32))
        return estimator.update(
            matrix,
            images,
            torch.full_like(images, NOISE**2),
            torch.ones_like(images),
            lambda pixels: own if pixels is None else own[:, pixels],
        )

    own = torch.from_numpy(truth).flatten(1).clone()
    own[16:] = 0.0  # a bad guess of what no slab saw
    take_in([0, 6, 10])
    found = take_in([2, 8, 16])
    assert int(found.age[:16].min()) == 2  # what was known is kept


def test_rolling_updates_leave_the_session_as_it_is() -> None:
    sweeps = [sweep_of(specimen(), number) for number in range(5)]
    quiet, busy = session("session"), session("session")
    for sweep in sweeps:
        busy.reconstruct(sweep, lane="rolling")
        np.testing.assert_array_equal(busy.reconstruct(sweep).volume, quiet.reconstruct(sweep).volume)
        busy.reconstruct(sweeps[0], lane="rolling")


def test_a_session_takes_no_more_than_is_said_and_a_rolling_update_none() -> None:
    store = SessionStore()
    reconstructor = session("session", store)
    structure = specimen()
    for number in range(6):
        bright = structure * (1 + np.float32(number % 2) * spot((16, 16, 16), 4.0))
        reconstructor.reconstruct(sweep_of(bright, number))
        assert 6 * structure.size <= store.nbytes <= session_bytes(HEADER, reconstructor.config)
    before = store.nbytes
    reconstructor.reconstruct(sweep_of(structure, 6), lane="rolling")
    assert store.nbytes == before


def test_what_was_learned_outlasts_another_range_of_brightness() -> None:
    truth, reconstructor = specimen(), session("session")
    first, *_, last = [
        reconstructor.reconstruct(sweep_of(truth, number, scale))
        for number, scale in enumerate((1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0))
    ]
    assert psnr(last, truth, 2.0) > psnr(first, truth) + 2.0
    assert last.merged


def held_out_session(truth: Volume, scale: float = 1.0) -> tuple[Reconstructor, Sweep]:
    """Return a session in which projections were held out of each sweep, and its next sweep."""
    reconstructor = session("session")
    for number in range(3):
        seen, between = sweep_of(truth, number), sweep_of(truth, number + 20)
        reconstructor.reconstruct(replace(seen, held_out_stage=between.stage, held_out=between.projections))
    return reconstructor, sweep_of(truth, 3, scale)


def test_the_cameras_noise_and_the_intervals_outlast_another_range() -> None:
    texture = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    reconstructor, sweep = held_out_session(texture, scale=2.0)
    before = reconstructor._sessions.peek(sweep)
    assert before is not None
    assert before.noise is not None
    reconstructor.reconstruct(sweep)
    after = reconstructor._sessions.peek(sweep)
    assert after is not None
    assert after.span > 1.5 * before.span
    assert after.noise is not None
    assert after.noise <= 1.101 * before.noise  # twice the texture is no noise
    assert after.scores == before.scores
    assert after.white_share < 0.6 * before.white_share  # of twice the texture noise is less


def test_another_specimen_of_another_range_begins_anew_as_well() -> None:
    reconstructor, sweep = held_out_session(specimen())
    before = reconstructor._sessions.peek(sweep)
    assert before is not None
    before.findings.general = True  # an adapted network was not for that specimen
    reconstructor.reconstruct(sweep_of(0.3 * specimen(seed=1) ** 2, 4))
    after = reconstructor._sessions.peek(sweep)
    assert after is not None
    assert after.span < 0.6 * before.span
    assert after.noise is not None
    assert before.noise is not None
    assert after.noise <= before.noise
    assert not after.findings.general


def test_what_comes_into_view_is_new_and_the_rest_is_kept() -> None:
    field = SessionField(SHAPE, bandwidth=0.07, reach=LENGTH, device=torch.device("cpu"))
    truth = specimen()
    for number in range(3):
        sweep = sweep_of(truth, number)
        images = torch.from_numpy(sweep.projections)
        field.update(
            lambda deeper, stage=sweep.stage: HEADER.operator_at(  # type: ignore[misc]
                StagePositions.along_z(stage.z_um - deeper)
            ),
            images,
            torch.full_like(images, NOISE**2),
            torch.ones_like(images),
            lambda *_: torch.from_numpy(truth).flatten(1),
        )
    before = field.estimator.expected.unflatten(1, SHAPE[1:]).clone()
    field.estimator.shift(1, -2, 3)
    after = field.estimator.expected.unflatten(1, SHAPE[1:])
    torch.testing.assert_close(after[:-1, 2:, :-3], before[1:, :-2, 3:])
    assert float(after[-1].abs().max()) == float(after[:, :2].abs().max()) == 0.0


def test_a_sweep_whose_depths_say_nothing_is_refused_and_the_next_goes_on() -> None:
    reconstructor = session("session")
    for number in range(3):
        sweep = sweep_of(specimen(), number)
        if number == 1:
            stage = StagePositions.along_z(np.full(len(sweep.projections), 27.0))
            with pytest.raises(GeometryError, match="slabs of a sweep say 27 µm"):
                reconstructor.reconstruct(replace(sweep, stage=stage))
        else:
            assert np.isfinite(reconstructor.reconstruct(sweep).volume).all()


@pytest.mark.parametrize("by", [(0, 0, 1), (-3, 0, 0), (5, -4, 9), (-7, 2, -2)], ids=str)
def test_a_specimen_may_go_further_than_the_volume_is_wide(by: tuple[int, int, int]) -> None:
    estimator = SessionEstimator((3, 2, 2), bandwidth=1.0, reach=2.0)
    matrix = np.full((1, 3), 1 / 3)
    images = torch.full((1, 2, 2), 0.5)
    estimator.update(matrix, images, torch.full_like(images, 1e-4), torch.ones_like(images))
    estimator.shift(*by)
    estimator.update(matrix, images, torch.full_like(images, 1e-4), torch.ones_like(images))


def test_every_age_is_looked_up_as_it_is_whatever_the_way() -> None:
    table = torch.rand(3, 2)
    age = torch.tensor([[[0, 1, 2]], [[3, 4, 255]]], dtype=torch.uint8)
    wanted = [[[table[0, 0], table[0, 0], table[1, 0]]], [[table[2, 1], table[2, 1], table[2, 1]]]]
    assert by_age(table, age).tolist() == torch.tensor(wanted).tolist()
