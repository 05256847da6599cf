"""Adapting to half of a recorded specimen, served for its other half and for another specimen.

Needs recorded volumes, which do not come with mdd: the variable TEST_VOLUMES names a folder that holds two.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from microdiffusion.config import EngineConfig
from microdiffusion.engines.diffusion import Belonging, load_denoiser, save_denoiser, shipped_weights
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.engines.training import AdaptPlan, planned_optics, read_specimen
from microdiffusion.engines.training.adapt_volume import learn
from microdiffusion.engines.training.trial import make_trial, trial_scores
from microdiffusion.optics import AxialProfile

FOLDER = Path(os.environ.get("TEST_VOLUMES", "absent"))
MINE, OTHER = FOLDER / "vessels_octa.h5", FOLDER / "cells_bigstream_high.h5"
CONFIG = EngineConfig(device="cpu", runtime="torch")
OPTICS = planned_optics(AxialProfile.box(6.0), 8.0, 1.0)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (MINE.is_file() and OTHER.is_file()), reason=f"no {MINE.name} and {OTHER.name} in TEST_VOLUMES"
    ),
]


def read(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["volume"][()], np.float32)[:64, :128, :128]


def test_half_of_a_specimen_helps_the_other_half_and_harms_no_other(tmp_path: Path) -> None:
    volume = read(MINE)
    stack, path = tmp_path / "stack.h5", tmp_path / "w.safetensors"
    with h5py.File(stack, "w") as file:
        file["volume"] = volume[:, :, :60]
    specimen = read_specimen(stack, (1.0, None, None))
    start = load_denoiser(shipped_weights())
    model, _ = learn(
        specimen, OPTICS, start, torch.device("cpu"), AdaptPlan(60, 1e6), begun_s=time.monotonic()
    )
    save_denoiser(model, path, Belonging("mine", specimen.fingerprint, 6.0, 8.0, 1.0).notes())
    shipped = open_engine(CONFIG)
    adapted = open_engine(CONFIG.model_copy(update={"weights": path}))
    unprotected = replace(adapted, belonging=None, general=None)
    gains = {}
    for name, part in (("mine", volume[:, :, 68:]), ("other", read(OTHER))):
        trial = make_trial(part, OPTICS, sweeps=5)
        scores = [
            np.array(trial_scores(trial, Reconstructor(trial.header, CONFIG, engine)))
            for engine in (shipped, unprotected, adapted)
        ]
        gains[name] = scores[1] - scores[0], scores[2] - scores[0]
    assert gains["mine"][1][0] > 0.1
    assert gains["other"][0][2:].mean() < -0.1
    assert gains["other"][1][2:].min() > -0.05
