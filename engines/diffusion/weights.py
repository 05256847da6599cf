"""Weights files: safetensors that carry the name of their architecture, and the ones that ship with mdd."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from microdiffusion.engines.diffusion.denoiser import Denoiser, find_architecture
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.text import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microdiffusion.config import EngineConfig

_EARLIER = "slab-unet"  # older files still name no architecture, and call its settings their shape


def save_denoiser(model: Denoiser, path: Path, notes: Mapping[str, str]) -> None:
    """Write weights (half precision), architecture and settings; `notes` go into the file's metadata."""
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    about = {"architecture": model.architecture, "settings": json.dumps(dict(model.settings))}
    save_file(tensors, path, metadata={name: encodable(text) for name, text in {**about, **notes}.items()})


def load_denoiser(path: Path) -> Denoiser:
    """Return the network of a weights file, float32, in evaluation mode, on the CPU.

    Raises
    ------
    MissingFileError, InputFileError
        No such file; or its architecture is not known, of an earlier mdd, or not that of the weights.
    """
    if not path.is_file():
        raise MissingFileError(f"Weights {path} do not exist: correct engine.weights or leave it out.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "shape" in metadata or metadata.get("architecture") == _EARLIER:
            raise InputFileError(
                "an earlier mdd made them, whose networks did not see how surely the INR knows a voxel"
            )
        model = find_architecture(metadata["architecture"])(**json.loads(metadata["settings"]))
        model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except Exception as error:
        raise InputFileError(
            f"{path} does not hold weights of this version's denoiser ({error}): "
            "train them with this version's `mdd train`, or leave engine.weights out."
        ) from error
    return model.eval()


def weights_notes(path: Path) -> dict[str, str]:
    """Return the notes of a weights file, architecture and settings among them; empty where it has none.

    Raises
    ------
    MissingFileError, InputFileError
        No such file; or it is none of weights.
    """
    if not path.is_file():
        raise MissingFileError(f"Weights {path} do not exist: correct engine.weights or leave it out.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # whatever a damaged header leads to
        raise InputFileError(f"{path} holds no weights ({error}): name a file of `mdd train`.") from error


def shipped_weights() -> Path:
    """Return the path of the weights that ship with mdd."""
    return Path(str(resources.files("microdiffusion.engines.weights") / "slab.safetensors"))


def weights_path(config: EngineConfig) -> Path:
    """Return the weights that a configuration asks for."""
    return config.weights or shipped_weights()
