"""Write a commented configuration, from Micro-Manager and a few answers.

  mdd init my.toml                       asks; for a running Micro-Manager, or
                                         one of its configurations
  mdd init my.toml --yes                 asks nothing: the demo devices
  mdd init my.toml --yes --backend java  the running Micro-Manager (its server at
                                         port 4827)
  mdd init my.toml --yes --mm-config scope.cfg --mm-app-path C:/Micro-Manager-2.0

No existing file is overwritten. Lengths are in µm, times in ms.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import options, say
from microdiffusion.errors import ConfigError, MddError, UserError
from microdiffusion.text import command_line

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from microdiffusion.config import AcquisitionConfig
    from microdiffusion.daemon.commands.suggestions import Value
    from microdiffusion.drivers.micromanager import Survey

RUNS = "Is Micro-Manager running, with its pycro-manager server? y, or n: mdd's own core and demo devices"
QUESTIONS: dict[str, tuple[str, str]] = {
    "sweep.length_um": ("--length-um UM", "Length of the slab that the beam lights, µm"),
    "sweep.step_um": ("--step-um UM", "Distance of neighbouring slabs, µm"),
    "volume.depth_um": ("--depth-um UM", "Depth of the volume, µm"),
    "volume.voxel_z_um": ("--voxel-z-um UM", "Distance of its slices, µm"),
    "volume.z0_um": ("--z0-um UM", "Stage position where it begins, µm"),
    "acquisition.exposure_ms": ("--exposure-ms MS", "Exposure, ms"),
}
MORE: dict[str, tuple[str, str, Callable[[str], object] | None]] = {
    "acquisition.port": ("--port N", "port of its pycro-manager server (java)", options.count),
    "acquisition.mm_config": ("--mm-config CFG", "Micro-Manager configuration (python)", options.file),
    "acquisition.mm_app_path": ("--mm-app-path DIR", "folder of device adapters (python)", options.folder),
    "volume.pixel_um": ("--pixel-um UM", "camera pixel in the specimen, µm", options.positive),
    "acquisition.channel_group": ("--channel-group NAME", "configuration group of the channels", None),
    "recorder.output": ("--output DIR", "folder of the run files", Path),
}
"""Options by the key that they set."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "FILE", "TOML file to write", options.file)
    options.add(parser, "--yes", "ask nothing, take what was found")
    options.add(parser, "--backend", "java: the running Micro-Manager", choices=("python", "java"))
    options.add(parser, "--name NAME", "start of the run files' names")
    options.add(parser, "--channels A,B", "presets of the group, one session each", _names)
    for key, (usage, about) in QUESTIONS.items():
        options.add(parser, usage, about, _parse(key), key=key)
    for key, (usage, about, parse) in MORE.items():
        options.add(parser, usage, about, parse, key=key)


def _parse(key: str) -> Callable[[str], float]:
    return options.finite if key == "volume.z0_um" else options.positive


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def run(args: Namespace) -> int:
    """Ask, survey, write, check."""
    from microdiffusion.config import load_config
    from microdiffusion.daemon.commands.suggestions import suggestions, written
    from microdiffusion.daemon.doctor import measured_pace
    from microdiffusion.drivers.micromanager import survey
    from microdiffusion.files import replacing

    file: Path = args.file
    if file.exists():
        raise UserError(f"{file} exists and is not overwritten: give another name, or move it away.")
    if not file.absolute().parent.is_dir():
        raise UserError(f"The folder {file.absolute().parent} does not exist: create it first.")
    asks = not args.yes
    if asks and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "mdd init asks questions and this is no terminal: add --yes to take what is found, and options "
            "for what you know better (mdd init --help)."
        )
    answers = {key: value for key, value in vars(args).items() if "." in key and value is not None}
    answers |= {"name": args.name} if args.name else {}
    answers |= {"acquisition.channels": args.channels} if args.channels else {}
    try:
        acquisition, backend = _backend(args.backend, answers, asks=asks)
        found = survey(acquisition)
        say(
            f"{found.core}: {found.camera}, {found.width} x {found.height} pixels, {found.bit_depth} bit; "
            f"focus stage {found.stage} at {found.stage_um:g} µm"
        )
        if asks:
            _ask(found, answers)
        values = suggestions(found, answers)
        config = load_config(overrides={name: value.value for name, value in {**values, **backend}.items()})
    except MddError as error:
        raise type(error)(_as_typed(str(error))) from error
    with replacing(file) as new:
        new.write_text(written(values, backend, found), encoding="utf-8")
        load_config(new)  # its paths are relative to its folder
    say(f"{file} is written and valid. The pace of this computer's engine is measured ...")
    pace = measured_pace(config)
    say("\n".join(filter(None, (f"  {pace.text}", pace.fix and f"  -> {pace.fix}"))))
    say("Next:")
    steps = {
        command_line("mdd", "doctor", "--config", file): "check for problems",
        "mdd calibrate --help": "measure beam and camera",
        command_line("mdd", "serve", "--config", file): "acquire",
    }
    width = max(map(len, steps))
    for command, meaning in steps.items():
        say(f"  {command:<{width}}  {meaning}")
    return 0


def _as_typed(refusal: str) -> str:
    """Return a refusal of the configuration with the options that the user types instead of its keys."""
    typed = {key: _option(key) for key in (*QUESTIONS, *MORE)}
    typed |= {"volume.shape_z": "--depth-um", "acquisition.channels": "--channels"}
    for key, option in typed.items():
        refusal = re.sub(rf"\b{re.escape(key)}\b", option, refusal)
    return refusal.replace("command line: ", "")


def _option(key: str) -> str:
    usage = QUESTIONS[key][0] if key in QUESTIONS else MORE[key][0]
    return usage.partition(" ")[0]


def _backend(
    backend: str | None, answers: dict[str, Any], *, asks: bool
) -> tuple[AcquisitionConfig, dict[str, Value]]:
    """Return which core to ask, and the keys that say so."""
    from microdiffusion.config import load_config
    from microdiffusion.daemon.commands.suggestions import Value

    port = answers.pop("acquisition.port", None)
    core = {key: answers.pop(key, None) for key in ("acquisition.mm_config", "acquisition.mm_app_path")}
    own = [_option(key) for key, value in core.items() if value is not None]
    if port is not None and (own or backend == "python"):
        raise ConfigError(f"--port is a running Micro-Manager's, not of {(*own, '--backend python')[0]}.")
    if own and backend == "java":
        raise ConfigError(f"{own[0]} is for mdd's own core: leave it out, or --backend java.")
    if "acquisition.channel_group" in answers and "acquisition.channels" not in answers:
        raise ConfigError("--channel-group needs --channels: the presets of that group, A,B.")
    yours = "your choice"
    why = yours if asks or backend or port else "the default; java: the running Micro-Manager"
    if backend is None and port is not None:
        backend = "java"
    elif backend is None and asks and not own:
        backend = "java" if _asked(RUNS, _yes_or_no, "y") else "python"
    given = {"acquisition.backend": Value(backend or "python", why)}
    if backend == "java":
        given["acquisition.port"] = Value(port or 4827, yours if port else "Micro-Manager's default")
    else:
        for key, value in core.items():
            # A relative path in a file is relative to that file, here it was to this folder.
            path = Path(value).absolute() if value is not None else None
            given[key] = Value(path, yours if path else "the demo devices")
    config = load_config(overrides={name: value.value for name, value in given.items()})
    return config.acquisition, given


def _ask(found: Survey, answers: dict[str, Any]) -> None:
    """Ask for what was not given; the default of each question follows from the answers before it."""
    from microdiffusion.daemon.commands.suggestions import suggestions

    if "volume.pixel_um" not in answers and found.pixel_um <= 0:
        question = "Camera pixel in the specimen, µm (unknown to Micro-Manager)"
        answers["volume.pixel_um"] = _asked(question, options.positive)
    for key, (_, question) in QUESTIONS.items():
        if key not in answers:
            values = suggestions(found, answers)
            if key == "volume.depth_um":
                default = values["volume.shape_z"].value * values["volume.voxel_z_um"].value
            else:
                default = values[key].value
            answers[key] = _asked(question, _parse(key), f"{float(default):.10g}")


def _asked(question: str, parse: Callable[[str], Any], default: str = "") -> Any:
    """Ask on the terminal until `parse` accepts the answer; Enter takes the default."""
    while True:
        try:
            said = input(f"{question} ({default}): " if default else f"{question}: ").strip()
        except EOFError:  # Ctrl-D, on Windows Ctrl-Z
            raise KeyboardInterrupt from None
        try:
            return parse(said or default)
        except argparse.ArgumentTypeError as error:
            say(f"  {error}")


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("y", "yes", "n", "no"):
        raise argparse.ArgumentTypeError(f"expected y or n, not {text}")
    return text.lower().startswith("y")
