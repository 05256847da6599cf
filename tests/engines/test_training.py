"""Training: sources, the stream of batches, checkpoints, card and curves, and what several processes do."""

from __future__ import annotations

import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from microdiffusion.config.engine_tables import SharesConfig
from microdiffusion.config.models import TrainingConfig
from microdiffusion.engines.diffusion import (
    CONDITIONS,
    WINDOW,
    SlabUNet,
    load_denoiser,
    shipped_weights,
)
from microdiffusion.engines.training import learner, loop, phantoms
from microdiffusion.engines.training.batches import Batches, cubes_of
from microdiffusion.engines.training.checkpoint import (
    identity,
    load_checkpoint,
    save_checkpoint,
    start_from,
)
from microdiffusion.engines.training.data import NOT_STATED, Record, Sources, build_pool, gather
from microdiffusion.engines.training.degrade import Group
from microdiffusion.engines.training.loop import train
from microdiffusion.engines.training.parallel import training_dtype
from microdiffusion.engines.training.report import Curves, Outcome, model_card
from microdiffusion.errors import ConfigError, DependencyError, EngineError, InputFileError, MissingFileError
from microdiffusion.files.volumes import open_volume, volume_paths

TINY = {"widths": [8, 12], "blocks": 1, "embedding": 16}
SWC = "# a tree\n1 1 0 0 0 1 -1\n2 3 10 0 0 1 1\n3 3 20 5 0 1 2\n4 3 20 5 12 1 3\n"


def specimen(seed: int = 0) -> np.ndarray:
    """Return a few soft blobs as counts."""
    rng = np.random.default_rng(seed)
    cube = phantoms.blobs(rng, 24)
    return (100 + 900 * cube / cube.max()).astype(np.uint16)


def write_volume(path: Path, volume: np.ndarray, **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        file["volume"] = volume
        file["volume"].attrs.update(attributes)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two volumes to train on and one to judge with."""
    path = tmp_path_factory.mktemp("volumes")
    write_volume(path / "one.h5", specimen(0), licence="CC0", structure="blobs", source_repo="a/b")
    write_volume(path / "two.h5", specimen(1), licence="BSD-3-Clause", source_repo="c/d")
    write_volume(path / "judge.h5", specimen(2), licence="MIT")
    return path


@pytest.fixture(scope="module")
def config(folder: Path) -> TrainingConfig:
    return TrainingConfig(
        volumes=(folder,),
        held_out=("judge",),
        widths=TINY["widths"],
        embedding=TINY["embedding"],
        iterations=6,
        minutes=1e6,
        batch=8,
        rate=1e-3,
        pool=4,
        ring=2,
        renew_every=2,
        validate_every=3,
        precision="float32",
    )


def changed(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    return config.model_copy(update=changes)


class Said(list):
    """What a training said."""

    def __call__(self, text: str) -> None:
        self.append(text)


# --- sources ------------------------------------------------------------------------------------------


def _hdf5(folder: Path, volume: np.ndarray) -> Path:
    return write_volume(folder / "v.h5", volume)


def _tiff(folder: Path, volume: np.ndarray) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(folder / "v.tif", volume)
    return folder / "v.tif"


def _ome_tiff(folder: Path, volume: np.ndarray) -> Path:
    tifffile = pytest.importorskip("tifffile")
    size = {f"PhysicalSize{axis}": edge for axis, edge in zip("ZYX", (2.0, 0.5, 0.5), strict=True)}
    tifffile.imwrite(folder / "v.ome.tif", volume[:, None], metadata={"axes": "ZCYX", **size})
    return folder / "v.ome.tif"


def _npy(folder: Path, volume: np.ndarray) -> Path:
    np.save(folder / "v.npy", volume)
    return folder / "v.npy"


def _ndtiff(folder: Path, volume: np.ndarray) -> Path:
    ndstorage = pytest.importorskip("ndstorage")
    dataset = ndstorage.NDTiffDataset(str(folder), name="v", writable=True)
    dataset.initialize({"PixelSizeUm": 0.5, "z-step_um": 2.0})
    for z in range(len(volume)):
        dataset.put_image({"z": z, "channel": "green"}, volume[z], {"PixelSizeUm": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library's writer leaves a file open
        dataset.finish()
        dataset.close()
        del dataset
        gc.collect()
    return next(folder.glob("v*"))


FORMATS = [_hdf5, _tiff, _ome_tiff, _npy, _ndtiff]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__.strip("_"))
def test_every_format_gives_the_same_voxels(tmp_path: Path, write) -> None:
    volume = specimen()
    path = write(tmp_path, volume)
    (read,) = gather([path]).used.values()
    np.testing.assert_array_equal(read, volume)


@pytest.mark.parametrize("write", [_ome_tiff, _ndtiff], ids=["OME-TIFF", "NDTiff"])
def test_microscope_formats_tell_their_voxel_size(tmp_path: Path, write) -> None:
    with open_volume(write(tmp_path, specimen())) as file:
        assert file.voxel_size_um == (2.0, 0.5, 0.5)


@pytest.mark.parametrize(("axes", "order"), [("TZYX", (0, 1, 2, 3)), ("ZTYX", (1, 0, 2, 3))])
def test_time_points_of_a_tiff_are_volumes_of_their_own(tmp_path: Path, axes: str, order) -> None:
    tifffile = pytest.importorskip("tifffile")
    series = np.stack([specimen(0)[:20], specimen(1)[:20]])
    tifffile.imwrite(tmp_path / "s.ome.tif", series.transpose(order), metadata={"axes": axes})
    used = gather([tmp_path / "s.ome.tif"]).used
    assert list(used) == ["s#0", "s#1"]
    np.testing.assert_array_equal(used["s#1"], series[1])


def test_a_tiff_with_channels_is_refused_by_name(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "c.ome.tif", np.zeros((5, 2, 8, 8), "u2"), metadata={"axes": "ZCYX"})
    with pytest.raises(InputFileError, match=r"c\.ome\.tif holds 2 images or positions.*C0, C1"):
        open_volume(tmp_path / "c.ome.tif")


def test_a_folder_is_read_whole_and_licences_are_kept(folder: Path) -> None:
    sources = gather([folder], held_out=["judge"], licence="CC-BY-4.0")
    assert (set(sources.used), set(sources.held)) == ({"one", "two"}, {"judge"})
    assert {(r.name, r.licence, r.source) for r in sources.records} == {
        ("one", "CC0", "a/b"),
        ("two", "BSD-3-Clause", "c/d"),
        ("judge", "MIT", NOT_STATED),
    }


def test_the_licence_of_files_that_state_none_comes_from_the_configuration(tmp_path: Path) -> None:
    path = _npy(tmp_path, specimen())
    assert [gather([path], licence=text).records[0].licence for text in ("CC0", "")] == ["CC0", NOT_STATED]


def test_morphologies_are_read_with_their_provenance(tmp_path: Path) -> None:
    (tmp_path / "tree.swc").write_text(SWC)
    (tmp_path / "other.swc").write_text(SWC)
    (tmp_path / "PROVENANCE.csv").write_text("file,repository,licence\ntree.swc,a/b,MIT\n")
    with h5py.File(tmp_path / "graph.h5", "w") as file:
        file["points"] = np.array([[0, 0, 0, 2], [5, 0, 0, 2], [9, 1, 0, 3]], dtype=float)
        file["structure"] = np.array([[0, 1]])
    sources = gather([], tmp_path)
    assert [len(tree) for tree in sources.trees] == [3, 3]
    assert sources.graph is not None
    np.testing.assert_allclose(sources.graph[:, 1, 3], [1.0, 1.5])
    assert {(r.name, r.licence) for r in sources.records} == {
        ("tree", "MIT"),
        ("other", NOT_STATED),
        ("graph", NOT_STATED),
    }


def _text(path: Path) -> Path:
    path.write_text("hello")
    return path


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        pytest.param(
            lambda p: _text(p / "bad.h5"), InputFileError, "bad.h5 cannot be read as HDF5", id="hdf5"
        ),
        pytest.param(lambda p: _text(p / "bad.npy"), InputFileError, "bad.npy cannot be read", id="npy"),
        pytest.param(
            lambda p: _text(p / "bad.tif"), InputFileError, "bad.tif cannot be read as TIFF", id="tiff"
        ),
        pytest.param(lambda p: p / "absent", MissingFileError, "no volume or folder", id="absent"),
        pytest.param(lambda p: p, InputFileError, "holds no volume", id="empty folder"),
        pytest.param(
            lambda p: write_volume(p / "flat.h5", np.ones((8, 8, 8))),
            InputFileError,
            "flat.h5 is empty",
            id="flat",
        ),
        pytest.param(
            lambda p: write_volume(p / "nan.h5", np.full((8, 8, 8), np.nan)),
            InputFileError,
            "not finite",
            id="not finite",
        ),
    ],
)
def test_a_bad_volume_is_named(tmp_path: Path, make, error, words: str) -> None:
    with pytest.raises(error, match=words):
        gather([make(tmp_path)])


@pytest.mark.parametrize("name", ["tree.swc", "graph.h5"])
def test_a_bad_morphology_is_named(tmp_path: Path, name: str) -> None:
    _text(tmp_path / name)
    with pytest.raises(InputFileError, match=name):
        gather([], tmp_path)


def test_a_held_out_name_that_fits_no_volume_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no volume juge to hold out \(did you mean judge"):
        gather([folder], held_out=["juge"])


def test_two_volumes_of_one_name_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputFileError, match="have the same name"):
        gather([folder, write_volume(tmp_path / "one.h5", specimen())])


def test_ndtiff_without_its_library_says_how_to_install_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "NDTiff.index").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "ndstorage", None)
    with pytest.raises(DependencyError, match="pip install ndstorage"):
        open_volume(tmp_path)


def test_a_folder_lists_volumes_only(tmp_path: Path) -> None:
    for name in ("b.tif", "a.h5", "notes.txt", "c.npy"):
        (tmp_path / name).write_text("")
    assert [path.name for path in volume_paths(tmp_path)] == ["a.h5", "b.tif", "c.npy"]


# --- pool and batches ---------------------------------------------------------------------------------


def test_shares_choose_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    sources = Sources(used={"ramp": np.linspace(0, 1, 32**3, dtype=np.float32).reshape((32,) * 3)})
    only = build_pool(sources, count=2, rng=rng, shares={"recorded": 1.0})
    # The ramp rises along z wherever it is cut.
    assert all(np.all(np.diff(cube.astype(float).mean(axis=(1, 2))[:20]) > 0) for cube in only)
    with pytest.raises(ConfigError, match="nothing to train on"):
        build_pool(sources, count=2, rng=rng, shares={"neurites": 1.0})


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    shares = SharesConfig().model_dump()
    return build_pool(Sources(), count=3, rng=np.random.default_rng(0), shares=shares)


def test_beginning_in_the_middle_gives_the_same_batches(pool: np.ndarray) -> None:
    settings = {"size": 8, "seed": 3, "ring": 2, "renew_every": 2}
    whole = Batches(pool, **settings)
    batches = [next(whole) for _ in range(6)]
    for first in (1, 4):
        middle = Batches(pool, **settings, first=first)
        for expected in batches[first : first + 2]:
            found = next(middle)
            assert torch.equal(found.state, expected.state)
            assert torch.equal(found.conditions, expected.conditions)


def test_processes_share_the_batches_of_one(pool: np.ndarray) -> None:
    settings: dict[str, Any] = {"size": 16, "seed": 3, "ring": 3, "renew_every": 1, "first": 2}
    alone = Batches(pool, **settings)
    expected = [next(alone) for _ in range(4)]
    for rank in range(2):
        first = itertools.count(2, 2)

        def gather(mine: Group, first: itertools.count[int] = first, rank: int = rank) -> list[Group]:
            number = next(first)
            both = [alone._make(number), alone._make(number + 1)]
            assert torch.equal(mine.prior, both[rank].prior)
            return both

        crew: Any = SimpleNamespace(rank=rank, size=2, gather=gather)
        shared = Batches(pool, **settings, crew=crew)
        for whole in expected:
            part = next(shared)
            assert [len(part.columns), len(part.state)] == [1, len(whole.state) // 2]
            half = slice(rank * len(part.state), (rank + 1) * len(part.state))
            for name in ("state", "prior", "deviation", "image", "conditions"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[half])
            assert torch.equal(part.columns[0].truth, whole.columns[rank].truth)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    assert cubes_of(32, 2) == 4
    with pytest.raises(ConfigError, match=r"32 windows are 4 cubes, which 3 processes .* a multiple of 24"):
        cubes_of(32, 3)


def test_groups_made_ahead_are_those_that_were_due(pool: np.ndarray) -> None:
    settings = {"size": 8, "seed": 1, "ring": 2, "renew_every": 1}
    ahead, due = Batches(pool, **settings, workers=2), Batches(pool, **settings)
    try:
        for _ in range(3):
            assert torch.equal(next(ahead).columns[0].truth, next(due).columns[0].truth)
    finally:
        ahead.close()


# --- checkpoints and starting points ------------------------------------------------------------------


def test_init_of_a_deeper_network_keeps_the_function(weights: Path) -> None:
    known = load_denoiser(weights)
    deeper = SlabUNet(**{**known.settings, "blocks": 3})
    start_from(deeper, weights)
    rng = torch.Generator().manual_seed(0)
    images = [torch.randn(2, WINDOW, 16, 16, generator=rng) for _ in range(4)]
    conditions = torch.randn(2, CONDITIONS, generator=rng)
    with torch.no_grad():
        torch.testing.assert_close(deeper(*images, conditions), known(*images, conditions))


@pytest.mark.parametrize(
    "shape",
    [((8, 16), 1, 16), ((8, 12), 1, 32), ((8, 12, 12), 1, 16)],
    ids=["widths", "embedding", "levels"],
)
def test_init_from_another_network_is_refused(weights: Path, shape: tuple[object, ...]) -> None:
    with pytest.raises(InputFileError, match="cannot start from"):
        start_from(SlabUNet(*shape), weights)


def test_a_checkpoint_of_another_plan_is_refused_with_what_differs(
    tmp_path: Path, config: TrainingConfig
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, identity(config, "data"), {"iteration": 1})
    assert load_checkpoint(path, identity(config, "data"))["iteration"] == 1
    longer = changed(config, iterations=100, minutes=1.0, device="cpu", output=Path("elsewhere"))
    assert load_checkpoint(path, identity(longer, "data"))["iteration"] == 1
    with pytest.raises(ConfigError, match=r"another training: rate differ \(rate was 0\.001, now 0\.5\)"):
        load_checkpoint(path, identity(changed(config, rate=0.5), "data"))
    with pytest.raises(ConfigError, match="data"):
        load_checkpoint(path, identity(config, "other data"))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, config: TrainingConfig) -> None:
    (tmp_path / "c.pt").write_bytes(b"nonsense")
    with pytest.raises(InputFileError, match=r"c\.pt is no checkpoint"):
        load_checkpoint(tmp_path / "c.pt", identity(config, "data"))


# --- the loop -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """Return the weights of a training in one go, and what it said."""
    said, output = Said(), tmp_path_factory.mktemp("trained") / "w.safetensors"
    about = {"command": "mdd train volumes --output w.safetensors", "machine": "a test's machine"}
    train(changed(config, output=output), said, **about)
    return output, said


def test_a_training_leaves_weights_card_curves_and_checkpoint(trained: tuple[Path, Said]) -> None:
    output, said = trained
    assert {path.name for path in output.parent.iterdir()} == {
        "w.safetensors",
        "w.md",
        "w.checkpoint.pt",
        "w.curves.json",
    }
    assert load_denoiser(output).settings == TINY
    assert "training on 2 volumes, 0 trees; held out: judge; starting from nothing" in said
    assert said[-1].startswith("On the held-out volumes these weights reach ")
    # A few iterations from nothing.
    assert not said[-1].endswith(": better.")


def test_training_starts_from_the_shipped_weights_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    plain = TrainingConfig(volumes=(tmp_path,))
    assert loop.starting_weights(plain) == shipped_weights()
    assert loop.starting_weights(changed(plain, scratch=True)) is None
    assert loop.starting_weights(changed(plain, init=tmp_path / "mine")) == tmp_path / "mine"
    assert loop.starting_weights(changed(plain, widths=(8, 12))) is None
    with pytest.raises(ConfigError, match="exclude each other"):
        loop.starting_weights(changed(plain, scratch=True, init=tmp_path / "mine"))


@pytest.mark.parametrize(
    ("ours", "words"),
    [(31.5, "dB: better."), (31.02, "dB: no difference"), (29.0, "dB: keep the shipped ones")],
)
def test_the_card_compares_with_the_shipped_weights(config: TrainingConfig, ours: float, words: str) -> None:
    row = {"linear": 28.0, "tikhonov": 29.0, "shipped": 31.0, "network": ours}
    row |= {"learned": 33.0, "learned_shipped": 34.0, "learned_network": 34.0}
    table = {"judge": row | {f"{name}_ssim": 0.9 for name in row}}
    outcome = Outcome(1, 1.0, "cpu", "float32", 1, "slab-unet", 100, 1.0, table)
    card = model_card(config, [], outcome)
    assert "shipped with mdd" in card
    assert words in card
    assert "No volume was held out" in model_card(config, [], replace(outcome, table={}))


def test_minutes_are_wall_time_preparing_and_judging_included(
    config: TrainingConfig, tmp_path: Path, monkeypatch
) -> None:
    clock = SlowClock(monkeypatch, build_pool=20.0, validate=5.0)
    short = changed(config, output=tmp_path / "w.safetensors", minutes=1.0, iterations=100_000)
    train(short, Said())
    assert 50.0 < clock.now_s <= 61.0
    with pytest.raises(ConfigError, match="leaves nothing to train: give more minutes"):
        train(changed(short, output=tmp_path / "v.safetensors", minutes=0.1), Said())


class SlowClock:
    """The loop's clock: steps that take so long, and half a second for each iteration."""

    def __init__(self, monkeypatch, **seconds: float) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        for name, taken_s in seconds.items():
            monkeypatch.setattr(loop, name, self._slow(getattr(loop, name), taken_s))
        monkeypatch.setattr(loop.Learner, "update", self._slow(loop.Learner.update, 0.5))

    def _slow(self, function, taken_s: float):
        def slow(*given: Any, **named: Any) -> Any:
            self.now_s += taken_s
            named.pop("until_s", None)
            return function(*given, **named)

        return slow


def test_a_pool_that_takes_too_long_is_smaller() -> None:
    shares = {"nuclei": 1.0}
    early = build_pool(Sources(), count=6, rng=np.random.default_rng(0), shares=shares, until_s=0.0)
    assert len(early) == 4
    whole = build_pool(Sources(), count=4, rng=np.random.default_rng(0), shares=shares)
    np.testing.assert_array_equal(early, whole)


def test_a_resumed_training_ends_as_the_uninterrupted_one(
    config: TrainingConfig, trained: tuple[Path, Said], tmp_path: Path, monkeypatch
) -> None:
    output, said = tmp_path / "w.safetensors", Said()
    # Stopped by Ctrl-C in the middle: the cosine of the schedule must be the whole run's.
    monkeypatch.setattr(loop, "_LOOK_EVERY", 1)

    def interrupt(progress) -> None:
        if progress.iteration == 4:
            import signal

            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(changed(config, output=output), said, interrupt)
    assert "stopped at iteration 4: continue with --resume" in said
    train(changed(config, output=output), said, resume=True)
    assert "resumed at iteration 4" in said
    expected, found = (load_denoiser(path).state_dict() for path in (trained[0], output))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [json.loads(p.with_suffix(".curves.json").read_text())["loss"] for p in (trained[0], output)]
    assert losses[0] == losses[1]


def test_an_earlier_checkpoint_is_not_overwritten_by_accident(
    config: TrainingConfig, trained: tuple[Path, Said]
) -> None:
    with pytest.raises(ConfigError, match="give --resume to continue"):
        train(changed(config, output=trained[0]), Said())


def test_resume_without_a_checkpoint_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no checkpoint .* to resume from"):
        train(changed(config, output=tmp_path / "w.safetensors"), Said(), resume=True)


def test_a_checkpoint_of_other_data_is_refused(
    config: TrainingConfig, trained: tuple[Path, Said], tmp_path: Path
) -> None:
    write_volume(tmp_path / "other.h5", specimen(7))
    other = changed(config, volumes=(tmp_path,), held_out=(), output=trained[0])
    with pytest.raises(ConfigError, match="another training: held_out, data differ"):
        train(other, Said(), resume=True)


def test_training_lowers_the_loss(config: TrainingConfig, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "_WARM_UP", 1)
    output = tmp_path / "w.safetensors"
    always_the_same = {"pool": 1, "ring": 1, "renew_every": 1000}
    train(changed(config, output=output, held_out=(), iterations=30, rate=5e-3, **always_the_same), Said())
    losses = json.loads(output.with_suffix(".curves.json").read_text())["loss"]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:4])


def test_a_loss_that_is_no_number_ends_the_training(
    config: TrainingConfig, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(learner, "loss_of", lambda batch, predicted: predicted.sum() * float("nan"))
    with pytest.raises(EngineError, match=r"no longer a number at iteration \d+: lower training.rate"):
        train(changed(config, output=tmp_path / "w.safetensors", held_out=()), Said())
    assert not (tmp_path / "w.safetensors").exists()


def test_two_processes_take_the_steps_of_one_and_one_goes_on(
    config: TrainingConfig, folder: Path, tmp_path: Path
) -> None:
    """The same losses and weights to rounding, and after a resume with another number of processes, too."""
    team, alone = tmp_path / "team.safetensors", tmp_path / "alone.safetensors"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {"batch": 16, "pool": 4, "ring": 3, "renew_every": 1, "precision": "float32", "iterations": 4}
    settings = [
        "widths=[8,12]",
        "embedding=16",
        "blocks=1",
        *(f"{key}={value}" for key, value in same.items()),
    ]
    command = [sys.executable, "-m", "microdiffusion.daemon.cli", "train", str(folder), "--device", "cpu"]
    command += ["--output", str(team), "--minutes", "1000"]
    command += [word for setting in settings for word in ("--set", f"training.{setting}")]
    crew = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=100)[0] for process in crew]
    assert [process.returncode for process in crew] == [0, 0], told
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert "shared by 2 processes" in team.with_suffix(".md").read_text(encoding="utf-8")
    assert "pool of 4 cubes" in told[0]
    assert "wrote" in told[0]
    assert told[1] == ""

    plain = changed(config, held_out=(), minutes=1000.0, device="cpu", **same)
    train(changed(plain, output=alone), Said())
    said = Said()
    train(changed(plain, output=team, iterations=6), said, resume=True)
    train(changed(plain, output=alone, iterations=6), Said(), resume=True)
    assert "the same to rounding" in "\n".join(said)
    assert "2 processes before, 1 now" in "\n".join(said)
    losses = [json.loads(path.with_suffix(".curves.json").read_text())["loss"] for path in (team, alone)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=2e-4)
    # Steps are small at first; that the gradients are the same, the optimiser's moments say.
    kept = [torch.load(path.with_suffix(".checkpoint.pt"), weights_only=True) for path in (team, alone)]
    for name, value in kept[0]["model"].items():
        torch.testing.assert_close(value, kept[1]["model"][name], rtol=1e-5, atol=1e-6)
    moments = [
        torch.cat([one[key].flatten() for one in state["optimiser"]["state"].values()])
        for key in ("exp_avg", "exp_avg_sq")
        for state in kept
    ]
    for ours, theirs in zip(moments[::2], moments[1::2], strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_half_precision_is_refused_where_it_cannot_train() -> None:
    with pytest.raises(ConfigError, match="a CPU does not train in"):
        training_dtype(torch.device("cpu"), "float16")
    assert training_dtype(torch.device("cpu"), "bfloat16") is torch.bfloat16


# --- card and curves ----------------------------------------------------------------------------------


def test_the_card_names_data_licences_command_and_scores(trained: tuple[Path, Said]) -> None:
    card = trained[0].with_suffix(".md").read_text(encoding="utf-8")
    for words in (
        "| one | blobs | 24 × 24 × 24 | a/b | CC0 |",
        "| two |  | 24 × 24 × 24 | c/d | BSD-3-Clause |",
        "Held out, never trained on: judge (not stated, MIT)",
        "mdd train volumes --output w.safetensors",
        "a test's machine; cpu, float32",
        "| seed | 0 |",
        "6 iterations of 8 windows",
        "| judge | ",
        "## Limits",
    ):
        assert words in card
    assert "state no licence" not in card


def test_a_card_says_what_is_not_known(config: TrainingConfig) -> None:
    outcome = Outcome(1, 1.0, "cpu", "float32", 1, "slab-unet", 100, 1.0, {})
    card = model_card(config, [Record("mine", "volume", NOT_STATED, NOT_STATED)], outcome)
    assert "1 of these sources state no licence** (mine)" in card
    assert "No volume was held out" in card


def test_curves_survive_the_way_through_json(trained: tuple[Path, Said]) -> None:
    curves = Curves.of_json(trained[0].with_suffix(".curves.json").read_text(encoding="utf-8"))
    assert [validation["iteration"] for validation in curves.validations] == [3, 6]
    assert list(curves.validations[0]["scores"]) == ["judge"]
    assert Curves.of_json(curves.to_json()) == curves
