"""Write a commented configuration for this microscope, from what Micro-Manager reports and a few answers.

  mdd init my.toml                                  asks; a Micro-Manager that runs, or a configuration of it
  mdd init my.toml --yes                            asks nothing: the demo devices
  mdd init my.toml --yes --backend java             from the running Micro-Manager (its server at port 4827)
  mdd init my.toml --yes --mm-config scope.cfg --mm-app-path "C:/Program Files/Micro-Manager-2.0"

Nothing that exists is overwritten. Lengths are in µm, times in ms.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import commands, options, say
from microdiffusion.errors import ConfigError, MddError, UserError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from microdiffusion.config import AcquisitionConfig
    from microdiffusion.daemon.cli import Value
    from microdiffusion.drivers.micromanager import Survey

RUNS = "Does Micro-Manager run, with its pycro-manager server? y, or n: a core of mdd's own, demo devices"
QUESTIONS = (
    ("length_um", "sweep.length_um", "Length of the slab that the beam lights, µm"),
    ("step_um", "sweep.step_um", "Distance of neighbouring slabs, µm"),
    ("depth_um", "volume.depth_um", "Depth of the volume, µm"),
    ("voxel_z_um", "volume.voxel_z_um", "Distance of its slices, µm"),
    ("z0_um", "volume.z0_um", "Stage position where it begins, µm"),
    ("exposure_ms", "acquisition.exposure_ms", "Exposure, ms"),
)
OPTIONS = {
    "acquisition.port": "--port",
    "acquisition.mm_config": "--mm-config",
    "acquisition.mm_app_path": "--mm-app-path",
    "acquisition.channel_group": "--channel-group",
    "acquisition.channels": "--channels",
    "volume.pixel_um": "--pixel-um",
    "volume.shape_z": "--depth-um",
    "recorder.output": "--output",
    **{key: "--" + option.replace("_", "-") for option, key, _ in QUESTIONS},
}
"""What the user types, by the key that a refusal names."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="FILE", help="TOML file to write")
    parser.add_argument("--yes", action="store_true", help="ask nothing, take what was found")
    parser.add_argument("--backend", choices=("python", "java"), help="java: the running Micro-Manager")
    parser.add_argument("--port", type=options.count, metavar="N", help="its pycro-manager server (java)")
    parser.add_argument("--mm-config", type=options.file, metavar="CFG", help="configuration (python)")
    parser.add_argument("--mm-app-path", type=options.folder, metavar="DIR", help="device adapters (python)")
    parser.add_argument("--name", help="start of the run files' names")
    parser.add_argument("--length-um", type=options.positive, metavar="UM", help=QUESTIONS[0][2])
    parser.add_argument("--step-um", type=options.positive, metavar="UM", help=QUESTIONS[1][2])
    parser.add_argument("--depth-um", type=options.positive, metavar="UM", help=QUESTIONS[2][2])
    parser.add_argument("--voxel-z-um", type=options.positive, metavar="UM", help=QUESTIONS[3][2])
    parser.add_argument("--z0-um", type=options.finite, metavar="UM", help=QUESTIONS[4][2])
    parser.add_argument(
        "--pixel-um", type=options.positive, metavar="UM", help="camera pixel in the specimen"
    )
    parser.add_argument("--exposure-ms", type=options.positive, metavar="MS", help=QUESTIONS[5][2])
    parser.add_argument("--channel-group", metavar="NAME", help="configuration group of the channels")
    parser.add_argument("--channels", metavar="A,B", help="presets of that group, one session each")
    parser.add_argument("--output", metavar="DIR", help="folder of the run files")


def run(args: Namespace) -> int:
    """Ask, survey, write, check."""
    from microdiffusion.config import load_config
    from microdiffusion.daemon.cli import suggestions, written
    from microdiffusion.drivers.micromanager import survey

    file: Path = args.file
    if file.exists():
        raise UserError(f"{file} exists and is not overwritten: give another name, or move it away.")
    if not file.absolute().parent.is_dir():
        raise UserError(f"The folder {file.absolute().parent} does not exist: make it first.")
    asks = not args.yes
    if asks and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "mdd init asks questions and this is no terminal: add --yes to take what is found, and the "
            "options of "
            "mdd init --help for what you know better."
        )
    try:
        acquisition, backend = _backend(args, asks=asks)
        found = survey(acquisition)
        say(
            f"{found.core}: {found.camera}, {found.width} x {found.height} pixels, {found.bit_depth} bit; "
            f"focus stage {found.stage} at {found.stage_um:g} µm"
        )
        answers = _answers(args)
        if asks:
            _ask(found, answers)
        values = suggestions(found, answers)
        load_config(overrides={name: value.value for name, value in {**values, **backend}.items()})
    except MddError as error:
        raise type(error)(_as_typed(str(error))) from error
    _write(file, written(values, backend, found))
    say(f"{file} is written and valid. Now:")
    steps = {"doctor": "what could go wrong", "calibrate": "beam and camera, measured", "serve": "acquire"}
    for command, meaning in steps.items():
        if command in commands():
            option = "--help" if command == "calibrate" else f"--config {file}"
            say(f"  mdd {command} {option:<{24 - len(command) + len(str(file))}} {meaning}")
    return 0


def _as_typed(refusal: str) -> str:
    """Return a refusal of the configuration with the options that the user typed in place of its keys."""
    for key, option in OPTIONS.items():
        refusal = re.sub(rf"\b{re.escape(key)}\b", option, refusal)
    return refusal.replace("command line: ", "")


def _write(file: Path, text: str) -> None:
    made = False
    try:
        with file.open("x", encoding="utf-8") as out:
            made = True
            out.write(text)
    except OSError as error:
        if made:
            file.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another folder.") from None


def _backend(args: Namespace, *, asks: bool) -> tuple[AcquisitionConfig, dict[str, Value]]:
    """Return which core to ask, and the keys that say so."""
    from microdiffusion.config import load_config
    from microdiffusion.daemon.cli import Value

    backend, config = args.backend, args.mm_config
    core = {"--mm-config": config, "--mm-app-path": args.mm_app_path}
    own = [option for option, value in core.items() if value is not None]
    if args.port is not None and (own or backend == "python"):
        raise ConfigError(f"--port is a running Micro-Manager's, not of {(*own, '--backend python')[0]}.")
    if own and backend == "java":
        raise ConfigError(f"{own[0]} is for a core of mdd's own: leave it out, or --backend java.")
    if args.channel_group is not None and args.channels is None:
        raise ConfigError("--channel-group needs --channels: the presets of that group, A,B.")
    if backend is None and args.port is not None:
        backend = "java"
    elif backend is None and asks and not own:
        backend = "java" if _asked(RUNS, _yes_or_no, "y") else "python"
    backend = backend or "python"
    said = "as you said"
    why = said if asks or args.backend or args.port else "the default; java: the running Micro-Manager"
    given: dict[str, Value] = {"acquisition.backend": Value(backend, why)}
    if backend == "java":
        port = args.port or 4827
        given["acquisition.port"] = Value(port, said if args.port else "Micro-Manager's own")
    else:
        for key, value in (("mm_app_path", args.mm_app_path), ("mm_config", config)):
            if value is None:
                given[f"acquisition.{key}"] = Value(
                    None, "the demo devices" if key == "mm_app_path" else "the demo's"
                )
            else:
                # A relative path in a file is relative to that file, here it was to this folder.
                given[f"acquisition.{key}"] = Value(Path(value).absolute(), said)
    config = load_config(overrides={name: value.value for name, value in given.items()})
    return config.acquisition, given


def _answers(args: Namespace) -> dict[str, Any]:
    channels = tuple(name.strip() for name in args.channels.split(",")) if args.channels else None
    return {
        "name": args.name,
        "volume.pixel_um": args.pixel_um,
        "acquisition.channel_group": args.channel_group,
        "acquisition.channels": channels,
        "recorder.output": Path(args.output) if args.output else None,
        **{key: getattr(args, option) for option, key, _ in QUESTIONS},
    }


def _ask(found: Survey, answers: dict[str, Any]) -> None:
    """Ask for what was not given; the default of each question follows from the answers before it."""
    from microdiffusion.daemon.cli import suggestions

    if answers["volume.pixel_um"] is None and found.pixel_um <= 0:
        question = "Camera pixel in the specimen, µm (Micro-Manager knows none)"
        answers["volume.pixel_um"] = _asked(question, options.positive)
    for _, key, question in QUESTIONS:
        if answers[key] is None:
            values = suggestions(found, answers)
            if key == "volume.depth_um":
                default = values["volume.shape_z"].value * values["volume.voxel_z_um"].value
            else:
                default = values[key].value
            parse = options.finite if key == "volume.z0_um" else options.positive
            answers[key] = _asked(question, parse, f"{float(default):.10g}")


def _asked(question: str, parse: Callable[[str], Any], default: str = "") -> Any:
    """Ask on the terminal until `parse` takes the answer; nothing said: the default."""
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
