"""Weights to start from, and checkpoints to resume from.

Files are written under a temporary name and renamed, so that a crash leaves the last good one. A checkpoint
remembers its training; that of another training is refused, and the message says what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from microdiffusion.config import TrainingConfig
from microdiffusion.engines.diffusion import Denoiser, load_denoiser, save_denoiser
from microdiffusion.errors import ConfigError, InputFileError, MissingFileError
from microdiffusion.files import replacing


def write_weights(model: Denoiser, path: Path, notes: Mapping[str, str]) -> None:
    """Write weights as `save_denoiser` does, whole or not at all."""
    with replacing(path) as temporary:
        save_denoiser(model, temporary, dict(notes))


def identity(config: TrainingConfig, sources: str) -> dict[str, str]:
    """Return the settings that a checkpoint must agree with, by name. Length, device and files may change.

    Parameters
    ----------
    sources : str
        Fingerprint of the data.
    """
    values: dict[str, Any] = {
        "network": {"widths": config.widths, "blocks": config.blocks, "embedding": config.embedding},
        "held_out": sorted(config.held_out),
        "data": sources,
        "shares": config.shares.model_dump(),
    }
    values |= config.model_dump(include={"batch", "rate", "pool", "ring", "renew_every", "seed"})
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}


def save_checkpoint(path: Path, identity: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint: tensors, numbers and texts only."""
    with replacing(path) as temporary:
        torch.save({"identity": dict(identity), **state}, temporary)


def load_checkpoint(path: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    """Return the state of a checkpoint of the same training.

    Raises
    ------
    MissingFileError, InputFileError
        There is none, or it cannot be read.
    ConfigError
        It belongs to another training.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no checkpoint {path} to resume from: leave out --resume.")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        theirs: dict[str, str] = state["identity"]
    except Exception as error:  # a damaged pickle may raise anything
        raise InputFileError(
            f"{path} is no checkpoint of this version ({type(error).__name__}): remove it and start over."
        ) from error
    different = [name for name, value in identity.items() if theirs.get(name) != value]
    if different:
        name = different[0]
        raise ConfigError(
            f"{path} is the checkpoint of another training: {', '.join(different)} differ "
            f"({name} was {_shown(theirs.get(name))}, now {_shown(identity[name])}): "
            "use the same settings, or another output."
        )
    return state


def _shown(text: str | None) -> str:
    value = "absent" if text is None else str(json.loads(text))
    return value if len(value) <= 60 else value[:57] + "..."


def start_from(model: Denoiser, path: Path) -> Denoiser:
    """Return `model` with the function of the weights in `path`; it may have more blocks than they do.

    Weights of another architecture are returned as their own network.

    A block that the weights lack becomes the identity, so a deeper network starts where the shallower one
    ended.

    Raises
    ------
    MissingFileError, InputFileError
        The file cannot be used, or its network has other widths or more blocks.
    """
    if not path.is_file():
        raise MissingFileError(f"There are no weights {path} to start from: correct training.init.")
    known = load_denoiser(path)
    if known.architecture != model.architecture:
        return known
    theirs, ours = dict(known.settings), dict(model.settings)
    if theirs | {"blocks": ours["blocks"]} != ours or theirs["blocks"] > ours["blocks"]:
        raise InputFileError(
            f"{path} holds {known.description}, which {model.description} cannot start from: "
            "use the same widths and embedding, and at least as many blocks."
        )
    absent = model.load_state_dict(known.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        for name in absent:
            if ".second." in name:
                nn.init.zeros_(model.get_parameter(name))
    return model
