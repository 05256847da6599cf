"""`mdd calibrate`: beam and camera against known truth, the files, what a configuration makes of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.calibration_scenes import BeadScene, bead_stack, camera_series, layer_stack

from microdiffusion.config.calibration import read_beam, read_camera
from microdiffusion.config.load import load_config
from microdiffusion.config.reference import dump_toml
from microdiffusion.daemon.calibration.beam import BeamResult, ZStack, measure_beam
from microdiffusion.daemon.calibration.camera import measure_camera
from microdiffusion.daemon.calibration.stack import read_stack
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.drivers.plan import Plan, load_profile
from microdiffusion.errors import InputFileError, UserError
from microdiffusion.optics import projection_operator

SMALL = BeadScene(beads=14, size=(96, 96), length_um=24.0, step_um=2.0, range_um=80.0)

SCENES = {
    "box": replace(SMALL, profile="box", seed=1),
    "gaussian, bleaching, jitter": replace(SMALL, bleaching=0.2, jitter=0.15, seed=2),
    "side lobes, descending": replace(SMALL, profile="bessel", descending=True, seed=3),
    "shuffled, hot pixels, gradient": replace(SMALL, shuffled=True, hot=0.002, gradient=1.2, seed=4),
    "few": replace(SMALL, beads=6, seed=5),
    "crowded": replace(SMALL, beads=60, profile="bessel", seed=6),
    "8 bit, oblong pixels": replace(SMALL, dtype="uint8", offset=5, gain=0.4, spot=(1.2, 2.2), seed=7),
    "float, drift": replace(SMALL, dtype="float32", drift_px=2.0, seed=8),
}


def measured(scene: BeadScene) -> tuple[BeamResult, object]:
    pixels, z_um, profile = bead_stack(scene)
    full = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else None
    return measure_beam(ZStack(pixels.astype(np.float32), z_um, full, "beads.tif")), profile


def length_of(profile, length_um: float) -> float:
    u = np.linspace(-2 * length_um, 2 * length_um, 8001)
    value = profile(u)
    above = u[value >= 0.5 * value.max()]
    return float(above[-1] - above[0])


def correlation(result: BeamResult, profile, *, mirrored: bool = False) -> float:
    """Correlation of the measured profile with the true one, wherever the middle of each is."""
    u = np.linspace(-2 * result.length_um, 2 * result.length_um, 1001)
    sign = -1.0 if mirrored else 1.0
    mine = np.interp(sign * u, result.z_um, result.weights, left=0.0, right=0.0)
    shifts = np.linspace(-0.3, 0.3, 121) * result.length_um
    return max(float(np.corrcoef(mine, profile(u + shift))[0, 1]) for shift in shifts)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_the_beam_is_found_within_5_percent(scene):
    result, profile = measured(scene)
    assert result.length_um == pytest.approx(length_of(profile, scene.length_um), rel=0.05)
    assert correlation(result, profile) > 0.98
    assert result.weights.sum() == pytest.approx(1.0)
    assert np.all(result.weights >= 0)
    assert np.allclose(np.diff(result.z_um), result.z_um[1] - result.z_um[0])
    assert result.z_um[len(result.z_um) // 2] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("tilt_um", [0.0, 12.0])
def test_a_thin_layer_shows_the_same_even_where_it_is_tilted(tilt_um):
    pixels, z_um, profile = layer_stack(replace(SMALL, profile="bessel", seed=11), tilt_um)
    result = measure_beam(ZStack(pixels.astype(np.float32), z_um, None, "layer.tif"), "layer")
    assert result.length_um == pytest.approx(length_of(profile, SMALL.length_um), rel=0.05)
    assert correlation(result, profile) > 0.98


def test_the_profile_is_the_operators_and_not_its_mirror_image():
    """Beads seen through `projection_operator` with a skewed profile give that profile back."""
    from microdiffusion.optics import AxialProfile

    weights = np.concatenate([np.linspace(0.1, 1.0, 20), np.ones(4)])
    truth = AxialProfile.sampled(weights, 1.0)
    z_um = np.arange(0.0, 90.0, 1.5)
    operator = projection_operator(z_um, truth, z0_um=-40.0, voxel_z_um=1.0, shape_z=180)
    rng = np.random.default_rng(3)
    place, depth = rng.uniform(8, 88, (14, 2)), rng.integers(60, 110, 14)
    rows = np.arange(96)
    spots = [np.outer(np.exp(-0.25 * (rows - y) ** 2), np.exp(-0.25 * (rows - x) ** 2)) for y, x in place]
    light = operator[:, depth] / operator.max()
    frames = rng.poisson(20 + 400 * np.einsum("zn,nyx->zyx", light, np.array(spots)))
    result = measure_beam(ZStack(frames.astype(np.float32), z_um))

    def true(u):
        return np.interp(u, (np.arange(24) - 11.5), weights, left=0.0, right=0.0)

    assert correlation(result, true) > 0.98
    assert correlation(result, true, mirrored=True) < 0.95


def test_the_interval_counts_what_is_wrong_with_an_image_for_all_of_it():
    inside = 0
    for seed in range(6):
        scene = replace(SMALL, profile="bessel", jitter=0.2, seed=seed)
        pixels, z_um, profile = layer_stack(scene, 6.0)
        result = measure_beam(ZStack(pixels.astype(np.float32), z_um, None, "layer.tif"), "layer")
        low, high = result.length_interval_um
        inside += low < length_of(profile, 24.0) < high
        assert high - low < 0.5 * result.length_um
    assert inside >= 5  # all tiles of an image are moved alike: their scatter alone held it in none


def test_the_interval_is_about_as_wide_as_results_scatter():
    results = [measured(replace(SMALL, seed=100 + seed))[0] for seed in range(6)]
    scatter = np.std([result.length_um for result in results])
    widths = [result.length_interval_um[1] - result.length_interval_um[0] for result in results]
    assert 0.2 * scatter < np.median(widths) < 30 * scatter


@pytest.mark.parametrize("seed", range(8))
def test_a_stack_of_five_images_is_measured_badly_or_refused_and_no_more(seed):
    scene = BeadScene(beads=3, size=(64, 64), length_um=14, step_um=10, range_um=40, beyond=-0.2, seed=seed)
    pixels, z_um, _ = bead_stack(scene)
    with contextlib.suppress(InputFileError):
        result = measure_beam(ZStack(pixels.astype(np.float32), z_um, None, "short.tif"))
        assert any("known to ±" in warning for warning in result.warnings), result.warnings


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"range_um": 30.0, "beyond": 0.0}, "does not show the ends"),
        ({"step_um": 8.0}, "coarse"),
        ({"beads": 3, "beyond": 0.0}, "only"),
    ],
    ids=["short", "coarse", "few"],
)
def test_what_is_wrong_with_a_stack_is_said(change, word):
    result, _ = measured(replace(SMALL, seed=21, **change))
    assert any(word in warning for warning in result.warnings), result.warnings


def test_saturated_beads_are_left_out_and_said():
    pixels, z_um, _ = bead_stack(replace(SMALL, beads=20, spread=0.8, seed=22))
    limit = float(np.percentile(pixels.max(axis=0), 99.6))
    clipped = np.minimum(pixels, limit).astype(np.float32)
    result = measure_beam(ZStack(clipped, z_um, limit))
    assert result.figures["saturated"] > 0
    assert any("saturated" in warning for warning in result.warnings)
    assert result.length_um == pytest.approx(SMALL.length_um, rel=0.05)


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (np.zeros((3, 32, 32), np.float32), "at least 5 images"),
        (np.random.default_rng(0).normal(100, 3, (30, 64, 64)).astype(np.float32), "no bead was found"),
        (np.full((20, 32, 32), 100, np.float32), "no bead was found"),
        (np.zeros((20, 32, 32), np.float32), "no bead was found"),
    ],
    ids=["three images", "noise", "one value", "no light"],
)
def test_a_stack_that_shows_nothing_is_refused(frames, sentence):
    with pytest.raises(InputFileError, match=sentence):
        measure_beam(ZStack(frames, np.arange(len(frames)) * 1.0, None, "stack.h5"))


def test_a_stack_whose_first_axis_is_not_the_stages_is_told():
    pixels, _, _ = bead_stack(replace(SMALL, step_um=1.0, range_um=60.0, length_um=12.0, seed=23))
    turned = np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.float32)
    result = measure_beam(ZStack(turned, np.arange(len(turned)) * 1.0, None, "turned.tif"))
    assert any("Save it as Z, Y, X" in warning for warning in result.warnings), result.warnings


CAMERAS = {
    "plain": {},
    "pattern and hot pixels": {"response": 0.1, "hot": 0.01},
    "lamp drifts by a third": {"lamp_drift": 0.33, "flicker": 0.03},
    "dim": {"photons": 20.0},
    "one pair": {"frames": 2},
    "partly saturated, 12 bit": {"photons": 1500.0, "gain": 2.4, "bits": 12, "gradient": 1.6},
    "a ramp": {"frames": 8, "levels": (0.1, 0.4, 1.0)},
}


@pytest.mark.parametrize("change", CAMERAS.values(), ids=CAMERAS)
def test_the_camera_is_found_within_10_percent(change):
    dark, flat = camera_series(seed=3, size=(96, 112), **change)
    result = measure_camera(dark, flat)
    gain = change.get("gain", 0.5)
    assert result.gain == pytest.approx(gain, rel=0.1)
    assert result.offset == pytest.approx(100.0, abs=0.3)
    assert result.read_noise == pytest.approx(2.0, abs=0.15)
    assert result.gain_interval[0] < result.gain < result.gain_interval[1]


def test_hot_pixels_are_counted():
    dark, flat = camera_series(seed=4, hot=0.005)
    true = int(0.005 * dark[0].size)
    assert 0.5 * true < measure_camera(dark, flat).figures["hot_pixels"] < 2 * true


@pytest.mark.parametrize(
    ("swap", "sentence"),
    [("exchanged", "name the dark series first"), ("sizes", "same region"), ("one", "at least 2")],
)
def test_series_that_cannot_be_right_are_refused(swap, sentence):
    dark, flat = camera_series(size=(48, 48))
    pairs = {"exchanged": (flat, dark), "sizes": (dark, flat[:, :32]), "one": (dark[:1], flat)}
    with pytest.raises(InputFileError, match=sentence):
        measure_camera(*pairs[swap])


# The command, its files, and the configuration that names them --------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a stack whose images are out of order, two series, and what the command made of them."""
    place = tmp_path_factory.mktemp("calibration")
    pixels, z_um, _ = bead_stack(replace(SMALL, profile="bessel", shuffled=True, seed=31))
    with h5py.File(place / "beads.h5", "w") as file:
        file["volume"] = pixels
        file["z_um"] = z_um
    dark, flat = camera_series(seed=5, size=(64, 64))
    np.save(place / "dark.npy", dark)
    np.save(place / "flat.npy", flat)
    beam = ["calibrate", "beam", str(place / "beads.h5"), "--output", str(place / "beam.toml")]
    assert cli.main(beam) == 0
    series = [str(place / "dark.npy"), str(place / "flat.npy")]
    assert cli.main(["calibrate", "camera", *series, "--output", str(place / "camera.toml")]) == 0
    return place


def test_the_command_says_what_it_found_and_where_it_goes(folder, capsys, tmp_path):
    arguments = ["calibrate", "beam", str(folder / "beads.h5"), "--output", str(tmp_path / "beam.toml")]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    for word in ("length", "equivalent", "residual", "95 %", "beads found", "█", 'calibration = "beam.toml"'):
        assert word in said
    assert max(len(line) for line in said.splitlines()[:16]) <= 80


def test_the_configuration_takes_both_and_the_run_gets_the_profile(folder):
    (folder / "my.toml").write_text(
        '[sweep]\ncalibration = "beam.toml"\n[camera]\ncalibration = "camera.toml"\n[volume]\nshape_z = 60\n'
    )
    config = load_config(folder / "my.toml")
    beam, camera = read_beam(folder / "beam.toml"), read_camera(folder / "camera.toml")
    assert config.sweep.length_um == beam.length_um
    assert config.sweep.resolved_step_um == beam.length_um
    assert np.allclose(load_profile(config.sweep).weights, beam.profile.weights)
    assert np.allclose(Plan(config).profile.weights, beam.profile.weights)
    assert config.camera.noise.gain == camera.gain
    assert (config.camera.offset, config.camera.read_noise) == (camera.offset, camera.read_noise)
    assert beam.origin.source.endswith("beads.h5")
    assert beam.length_interval_um[0] <= beam.length_um <= beam.length_interval_um[1]


def test_a_configuration_with_calibrations_survives_being_written_down(folder, tmp_path):
    config = load_config(
        overrides={
            "sweep.calibration": str(folder / "beam.toml"),
            "camera.calibration": str(folder / "camera.toml"),
            "volume.shape_z": 60,
        }
    )
    (tmp_path / "again.toml").write_text(dump_toml(config), encoding="utf-8")
    again = load_config(tmp_path / "again.toml")
    assert (again.sweep, again.camera) == (config.sweep, config.camera)


def test_a_value_beside_its_calibration_is_refused_with_both_named(folder):
    (folder / "both.toml").write_text('[camera]\ncalibration = "camera.toml"\ngain = 0.9\n')
    with pytest.raises(UserError, match=r"line 3: camera\.gain = 0\.9, but camera\.toml.*leave one"):
        load_config(folder / "both.toml")
    (folder / "length.toml").write_text('[sweep]\nlength_um = 12.0\ncalibration = "beam.toml"\n')
    with pytest.raises(UserError, match=r"line 2: sweep\.length_um"):
        load_config(folder / "length.toml")


def test_what_is_closer_to_the_user_wins(folder):
    (folder / "my2.toml").write_text(
        '[camera]\ncalibration = "camera.toml"\n[sweep]\ncalibration = "beam.toml"\n'
    )
    config = load_config(folder / "my2.toml", overrides={"camera.gain": 0.9, "sweep.length_um": 8.0})
    assert config.camera.gain == 0.9
    assert config.camera.offset == read_camera(folder / "camera.toml").offset
    assert config.sweep.calibration is None
    assert load_profile(config.sweep).weights.size == 1
    over = load_config("demo", overrides={"camera.calibration": str(folder / "camera.toml")})
    assert over.camera.gain == read_camera(folder / "camera.toml").gain


BAD_FILES = {
    "absent": (None, "There is no calibration file"),
    "not toml": ("kind = ", "not valid TOML"),
    "other kind": ('kind = "camera"', "not a beam calibration"),
    "no calibration": ("a = 1", "no calibration"),
    "damaged": ('kind = "beam"\nlength_um = -3.0', "damaged"),
}


@pytest.mark.parametrize(("text", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_calibration_that_cannot_be_used_is_one_sentence(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "beam.toml").write_text(text)
    (tmp_path / "my.toml").write_text('[sweep]\ncalibration = "beam.toml"\n')
    with pytest.raises(UserError, match=sentence) as refusal:
        load_config(tmp_path / "my.toml")
    assert "\n" not in str(refusal.value)
    assert "my.toml, line 2" in str(refusal.value)


@pytest.mark.parametrize("ending", [".h5", ".tif", ".npy"])
def test_stacks_of_every_kind_are_read_with_their_positions(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 900, (7, 20, 24)).astype(np.uint16)
    path = tmp_path / f"stack{ending}"
    step_um = None
    if ending == ".h5":
        with h5py.File(path, "w") as file:
            file["volume"] = pixels
            file["volume"].attrs["voxel_size_um"] = [1.5, 0.3, 0.3]
    elif ending == ".tif":
        tifffile = pytest.importorskip("tifffile")
        planes = {"PositionZ": [9.0 - 1.5 * n for n in range(7)], "PositionZUnit": ["µm"] * 7}
        tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "ZYX", "Plane": planes})
    else:
        np.save(path, pixels)
        with pytest.raises(InputFileError, match="--step-um"):
            read_stack(path)
        step_um = -1.5
    stack = read_stack(path, step_um=step_um)
    assert np.array_equal(stack.frames, pixels)
    assert np.allclose(np.abs(np.diff(stack.z_um)), 1.5)
    assert (np.diff(stack.z_um)[0] < 0) == (ending != ".h5")
    assert stack.full == 65535


def test_positions_that_cannot_be_read_are_one_sentence(tmp_path):
    path = tmp_path / "stack.h5"
    with h5py.File(path, "w") as file:
        file["volume"] = np.ones((7, 20, 24), np.uint16)
        file.create_dataset("z_um", data=np.arange(7.0), chunks=(7,), fletcher32=True)
        at, size = (getattr(file["z_um"].id.get_chunk_info(0), name) for name in ("byte_offset", "size"))
    content = bytearray(path.read_bytes())
    content[at : at + size] = bytes(range(size))
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"z_um cannot be read .*copy it again, or give --step-um"):
        read_stack(path)
    assert read_stack(path, step_um=2.0).z_um.tolist() == [2.0 * number for number in range(7)]


def _unit(stack: Path) -> list[str]:
    return [str(stack), "--step-um", "0.001"]


def _no_numbers(stack: Path) -> list[str]:
    with h5py.File(stack.with_name("text.h5"), "w") as file:
        file["volume"] = np.ones((6, 8, 8), np.uint16)
        file["z_um"] = "0 to 6"
    return [str(stack.with_name("text.h5"))]


def _too_few(stack: Path) -> list[str]:
    with h5py.File(stack.with_name("few.h5"), "w") as file:
        file["volume"] = np.ones((6, 8, 8), np.uint16)
        file["z_um"] = np.arange(5.0)
    return [str(stack.with_name("few.h5"))]


MISTAKEN = {
    "mm for um": (_unit, "less than any beam is long: give the step or the positions in µm"),
    "positions that are no numbers": (_no_numbers, "z_um should be numbers"),
    "fewer positions than images": (_too_few, "6 images, but there are 5 stage positions"),
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKEN.values(), ids=MISTAKEN)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, words, sentence
):
    monkeypatch.chdir(tmp_path)
    np.save("beads.npy", np.ones((6, 8, 8), np.uint16))
    assert cli.main(["calibrate", "beam", *words(tmp_path / "beads.npy")]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""
    assert not Path("beam.toml").exists()


@pytest.mark.acquisition
@pytest.mark.parametrize("options", [["--to-um", "96"], ["--layer", "--to-um", "-10", "--from-um", "96"]])
def test_a_stack_is_taken_with_the_demo_core(tmp_path, options):
    """In a process of its own: there is one core per process."""
    command = [
        sys.executable,
        "-m",
        "microdiffusion.daemon.cli",
        "calibrate",
        "beam",
        "--acquire",
        "--demo",
    ]
    small = ["--set", "camera.width=96", "--set", "camera.height=96", "--from-um", "-10", "--step-um", "1.5"]
    output = tmp_path / "beam.toml"
    subprocess.run([*command, *small, *options, "--output", str(output)], check=True, timeout=100)
    assert read_beam(output).length_um == pytest.approx(12.0, rel=0.05)


def test_a_kept_stack_is_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "run.h5"
    there.write_bytes(b"a run")
    planes = ["--from-um", "0", "--to-um", "20", "--step-um", "1"]
    assert cli.main(["calibrate", "beam", "--acquire", *planes, "--keep-stack", str(there)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert there.read_bytes() == b"a run"
