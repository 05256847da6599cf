"""Write a commented configuration for this microscope, from what Micro-Manager reports and a few answers.

  mdd init my.toml                                  asks; a Micro-Manager that runs, or a configuration of it
  mdd init my.toml --yes                            asks nothing: the demo devices
  mdd init my.toml --yes --backend java             from the running Micro-Manager (its server at port 4827)
  mdd init my.toml --yes --mm-config scope.cfg --mm-app-path "C:/Program Files/Micro-Manager-2.0"

Nothing that exists is overwritten. Lengths are in µm, times in ms.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import commands, say
from microdiffusion.daemon.commands import options
from microdiffusion.errors import MddError, UserError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.config import AcquisitionConfig
    from microdiffusion.daemon.new_config import Value
    from microdiffusion.drivers.mm_survey import Survey

QUESTIONS = (
    ("length_um", "sweep.length_um", "Length of the slab that the beam lights, µm"),
    ("step_um", "sweep.step_um", "Distance of neighbouring slabs, µm"),
    ("depth_um", "volume.depth_um", "Depth of the volume, µm"),
    ("voxel_z_um", "volume.voxel_z_um", "Distance of its slices, µm"),
    ("z0_um", "volume.z0_um", "Stage position where it begins, µm"),
    ("exposure_ms", "acquisition.exposure_ms", "Exposure, ms"),
)


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
    from microdiffusion.config_load import load_config
    from microdiffusion.daemon.new_config import suggestions, written
    from microdiffusion.drivers.mm_survey import survey

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
    acquisition, backend = _backend(args, asks=asks)
    found = survey(acquisition)
    say(
        f"{found.core}: {found.camera}, {found.width} x {found.height} pixels, {found.bit_depth} bit; "
        "focus stage "
        f"{found.stage} at {found.stage_um:g} µm"
    )
    answers = _answers(args)
    if asks:
        _ask(found, answers)
    text = written(suggestions(found, answers), backend, found)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another folder.") from None
    try:
        load_config(file)
    except MddError:
        file.unlink()
        raise
    say(f"{file} is written and valid. Now:")
    steps = {"doctor": "what could go wrong", "calibrate": "beam and camera, measured", "serve": "acquire"}
    for command, meaning in steps.items():
        if command in commands():
            option = "--help" if command == "calibrate" else f"--config {file}"
            say(f"  mdd {command} {option:<{24 - len(command) + len(str(file))}} {meaning}")
    return 0


def _backend(args: Namespace, *, asks: bool) -> tuple[AcquisitionConfig, dict[str, Value]]:
    """Return which core to ask, and the keys that say so."""
    from microdiffusion.config import AcquisitionConfig
    from microdiffusion.daemon.new_config import Value

    backend, config = args.backend, args.mm_config
    if backend is None and asks and config is None and args.mm_app_path is None:
        from rich.prompt import Confirm

        if Confirm.ask(
            "Does Micro-Manager run, with its pycro-manager server? (n: a core of mdd's own, demo devices)",
            default=True,
        ):
            backend = "java"
        else:
            backend = "python"
    backend = backend or "python"
    said = "as you said"
    why = said if asks or args.backend else "the default; java: the running Micro-Manager"
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
    fields = {name.partition(".")[2]: value.value for name, value in given.items()}
    return AcquisitionConfig.model_validate(fields), given


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
    from rich.prompt import FloatPrompt

    from microdiffusion.daemon.new_config import suggestions

    if answers["volume.pixel_um"] is None and found.pixel_um <= 0:
        answers["volume.pixel_um"] = FloatPrompt.ask(
            "Camera pixel in the specimen, µm (Micro-Manager knows none)"
        )
    for _, key, question in QUESTIONS:
        if answers[key] is None:
            values = suggestions(found, answers)
            if key == "volume.depth_um":
                default = values["volume.shape_z"].value * values["volume.voxel_z_um"].value
            else:
                default = values[key].value
            answers[key] = FloatPrompt.ask(question, default=float(default))
