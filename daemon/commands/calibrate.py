"""Measure the beam's axial profile, or the camera's offset, gain and read noise.

  mdd calibrate beam beads.tif --step-um 1 --output beam.toml
  mdd calibrate beam layer.h5 --layer
  mdd calibrate beam --acquire --config my.toml --from-um 0 --to-um 90 --step-um 1
  mdd calibrate camera dark.tif flat.tif --output camera.toml

beam: a z-stack of sub-slab beads, or of a thin fluorescent layer, as HDF5,
TIFF, NDTiff or NPY. camera: a series of frames without light, and one of an
evenly lit scene. To use the results, name their files in the configuration:
sweep.calibration and camera.calibration.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.daemon.cli import complain, options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from microdiffusion.config import BeamFile, CameraFile
    from microdiffusion.daemon.calibration import BeamResult, CameraResult, ZStack

STACK_MOST = 5000


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the two kinds and their options."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="beam|camera")
    beam = kinds.add_parser("beam", help="axial profile and length, from a z-stack")
    options.add(beam, "STACK", "z-stack", options.file, nargs="?")
    options.add(beam, "--layer", "the specimen is a thin layer, not beads")
    options.add(beam, "--step-um S", "from one image to the next; negative: downwards", options.finite)
    options.add(beam, "--z-um FILE", "text file of each image's position", options.file)
    acquire = beam.add_argument_group("instead of a STACK")
    options.add(acquire, "--acquire", "acquire it with the configured devices")
    options.add(acquire, "--from-um Z", "stage position of the first image", options.finite)
    options.add(acquire, "--to-um Z", "stage position of the last image", options.finite)
    options.add(acquire, "--keep-stack FILE", "HDF5 file to keep the images in", options.file)
    options.add_config(beam, demo=True)
    camera = kinds.add_parser("camera", help="offset, read noise and gain, from two series")
    options.add(camera, "DARK", "frames without light", options.file)
    options.add(camera, "FLAT", "frames of an evenly lit scene", options.file)
    for part, name in ((beam, "beam.toml"), (camera, "camera.toml")):
        options.add(part, "--saturation C", "counts of a full pixel", options.positive)
        options.add(part, "--output FILE", f"file to write ({name})", options.file, default=Path(name))


def run(args: Namespace) -> int:
    """Measure, print the result, and write it."""
    (_beam if args.kind == "beam" else _camera)(args)
    table = "sweep" if args.kind == "beam" else "camera"
    say(f'wrote {args.output}; in the configuration, under [{table}]: calibration = "{args.output.name}"')
    return 0


def _beam(args: Namespace) -> None:
    from microdiffusion.config import BeamFile
    from microdiffusion.daemon.calibration import measure_beam

    stack = _acquired(args) if args.acquire else _read_stack(args)
    beam = measure_beam(stack, "layer" if args.layer else "beads")
    say(_drawn(beam))
    found = beam.figures
    if found["specimen"] == "layer":
        source = f"{found['beads']} tiles of the image"
    else:
        left_out = f"{found['overlapping']} overlap, {found['saturated']} saturated"
        source = f"{found['beads']} of {found['found']} beads found ({left_out})"
    _say_figures(
        {
            "length": f"{beam.length_um:.4g} µm, full width at half maximum "
            f"{_between(beam.length_interval_um)}",
            "equivalent": f"{beam.equivalent_um:.4g} µm, box of the same sum and sum of squares "
            f"{_between(beam.equivalent_interval_um)}",
            "centroid": f"{beam.centroid_um:+.3g} µm from the middle {_between(beam.centroid_interval_um)}",
            "from": source,
            "residual": f"{found['residual']:.1%} of the height; step {found['step_um']:g} µm over "
            f"{found['range_um']:g} µm",
        },
        beam.warnings,
    )
    _write(args.output, BeamFile.model_validate(_content(beam, "beam", stack.source)))


def _camera(args: Namespace) -> None:
    from microdiffusion.config import CameraFile
    from microdiffusion.daemon.calibration import measure_camera, read_series

    names = (str(args.dark), str(args.flat))
    camera = measure_camera(read_series(args.dark), read_series(args.flat), full=args.saturation, names=names)
    _say_figures(
        {
            "offset": f"{camera.offset:.5g} counts {_between(camera.offset_interval)}",
            "read noise": f"{camera.read_noise:.4g} counts {_between(camera.read_noise_interval)}",
            "gain": f"{camera.gain:.4g} counts per photon {_between(camera.gain_interval)}",
            "hot pixels": f"{camera.figures['hot_pixels']}",
            "saturated": f"{camera.figures['saturated_share']:.2%}",
        },
        camera.warnings,
    )
    content = _content(camera, "camera", ", ".join(names))
    _write(args.output, CameraFile.model_validate(content))


def _write(path: Path, content: BeamFile | CameraFile) -> None:
    """Write a calibration, replacing what was there."""
    from microdiffusion.config import calibration_toml
    from microdiffusion.files import replacing

    with replacing(path) as new:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(calibration_toml(content, path.name), encoding="utf-8", errors="replace")


def _drawn(beam: BeamResult, *, columns: int = 60, rows: int = 17) -> str:
    """Return the profile as text, a line for each depth: █ up to the curve, ░ up to the end of its band."""
    import numpy as np

    depths = np.linspace(beam.z_um[0], beam.z_um[-1], rows)
    scale = columns / float(beam.high.max())
    value, high = (
        np.rint(np.interp(depths, beam.z_um, scale * part)).astype(int) for part in (beam.weights, beam.high)
    )
    return "\n".join(
        f"{depth:>8.3g} µm │{'█' * low}{'░' * (up - low)}"
        for depth, low, up in zip(depths, value, high, strict=True)
    )


def _say_figures(figures: dict[str, str], warnings: tuple[str, ...]) -> None:
    for name, text in (*figures.items(), *(("warning", warning) for warning in warnings)):
        say(f"  {name:<11} {text}")


def _between(interval: tuple[float, float]) -> str:
    return f"(95 %: {interval[0]:.4g} to {interval[1]:.4g})"


def _content(result: BeamResult | CameraResult, kind: str, source: str) -> dict[str, Any]:
    """Return the content of a calibration file, whose model ignores what it has no field for."""
    import numpy as np

    from microdiffusion.daemon.engine import provenance

    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in asdict(result).items()
    }
    now, known = time.time(), provenance(None)
    origin = {
        "date_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "date_local": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now)),
        "source": source,
        "versions": {name: known[name] for name in ("mdd", "python", "numpy") if name in known},
        "warnings": result.warnings,
    }
    return values | {"kind": kind, "origin": origin}


def _read_stack(args: Namespace) -> ZStack:
    from microdiffusion.daemon.calibration import read_stack
    from microdiffusion.errors import ConfigError

    if args.stack is None:
        raise ConfigError("Give the file of a z-stack, or acquire one with --acquire.")
    if args.from_um is not None or args.to_um is not None:
        raise ConfigError("--from-um and --to-um go with --acquire: for a file give --step-um or --z-um.")
    return read_stack(args.stack, step_um=args.step_um, z_file=args.z_um, full=args.saturation)


def _acquired(args: Namespace) -> ZStack:
    import numpy as np

    from microdiffusion.daemon.calibration import ZStack, write_stack
    from microdiffusion.drivers.micromanager import take_stack
    from microdiffusion.errors import ConfigError

    if args.stack is not None:
        raise ConfigError("Give a STACK or --acquire, not both.")
    if args.from_um is None or args.to_um is None or not args.step_um:
        raise ConfigError("--acquire needs --from-um, --to-um and --step-um, in µm.")
    count = int(abs(args.to_um - args.from_um) / abs(args.step_um) + 1e-6) + 1
    if not 5 <= count <= STACK_MOST:
        raise ConfigError(
            f"{count} images from {args.from_um:g} to {args.to_um:g} µm in steps of {abs(args.step_um):g} "
            f"µm: choose 5 to {STACK_MOST}."
        )
    if args.keep_stack and args.keep_stack.exists():
        raise ConfigError(f"--keep-stack {args.keep_stack} exists and is not overwritten: name another file.")
    config = options.config_from(args)
    if config.acquisition.specimen and config.specimen.kind == "tissue":
        vars(args)["specimen.kind"] = "layer" if args.layer else "beads"
        config = options.config_from(args)
    direction = 1.0 if args.to_um >= args.from_um else -1.0
    z_um = args.from_um + direction * abs(args.step_um) * np.arange(count)
    images, z_um, pixel_um, full = take_stack(config, z_um, note=complain)
    if args.keep_stack:
        write_stack(args.keep_stack, images, z_um, pixel_um)
    source = str(args.keep_stack) if args.keep_stack else f"acquired with {args.config or 'the defaults'}"
    return ZStack(images.astype(np.float32), z_um, args.saturation or full, source)
