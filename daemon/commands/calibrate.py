"""Measure the beam's axial profile, or the camera's offset, gain and read noise, for the configuration.

  mdd calibrate beam beads.tif --step-um 1 --output beam.toml
  mdd calibrate beam layer.h5 --layer --plot beam.png
  mdd calibrate beam --acquire --config my.toml --from-um 0 --to-um 90 --step-um 1
  mdd calibrate camera dark.tif flat.tif --output camera.toml

beam: a z-stack of sub-slab beads, or of a thin fluorescent layer, HDF5, TIFF, NDTiff or NPY. camera: a
series of frames without light, and one of an evenly lit scene. What is written is named in a configuration
by sweep.calibration and camera.calibration.
"""

from __future__ import annotations

import shutil
import sys
import time
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
    beam.add_argument("stack", type=options.file, nargs="?", metavar="STACK")
    beam.add_argument("--layer", action="store_true", help="the specimen is a thin layer, not beads")
    beam.add_argument(
        "--step-um", type=options.finite, metavar="S", help="from one image to the next; negative: downwards"
    )
    beam.add_argument("--z-um", type=options.file, metavar="FILE", help="text file of each image's position")
    beam.add_argument("--saturation", type=options.positive, metavar="C", help="counts of a full pixel")
    _add_output(beam, "beam.toml")
    acquire = beam.add_argument_group("instead of a STACK")
    acquire.add_argument("--acquire", action="store_true", help="take it, with the configuration's devices")
    acquire.add_argument(
        "--from-um", type=options.finite, metavar="Z", help="stage position of the first image"
    )
    acquire.add_argument("--to-um", type=options.finite, metavar="Z", help="and of the last one")
    acquire.add_argument(
        "--keep-stack", type=options.file, metavar="FILE", help="HDF5 file that the images are kept in"
    )
    options.add_config_options(beam, demo=True)
    camera = kinds.add_parser("camera", help="offset, read noise and gain, from two series")
    camera.add_argument("dark", type=options.file, metavar="DARK", help="frames without light")
    camera.add_argument("flat", type=options.file, metavar="FLAT", help="frames of an evenly lit scene")
    camera.add_argument("--saturation", type=options.positive, metavar="C", help="counts of a full pixel")
    _add_output(camera, "camera.toml")


def _add_output(parser: ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--output", type=options.file, default=Path(name), metavar="FILE", help=f"what is written ({name})"
    )
    parser.add_argument("--plot", type=options.file, metavar="FILE", help="also draw it, as .png or .svg")


def run(args: Namespace) -> int:
    """Measure, say what came out, and write it."""
    if args.plot:
        from microdiffusion.daemon.calibration import check_plot

        check_plot(args.plot)
    return _beam(args) if args.kind == "beam" else _camera(args)


def _beam(args: Namespace) -> int:
    from microdiffusion.config import write_calibration
    from microdiffusion.daemon.calibration import measure_beam

    stack = _acquired(args) if args.acquire else _read_stack(args)
    result = measure_beam(stack, "layer" if args.layer else "beads")
    _say_beam(result)
    write_calibration(args.output, _beam_file(result, stack.source))
    if args.plot:
        from microdiffusion.daemon.calibration import plot_beam

        plot_beam(result, args.plot, f"Axial profile, {Path(stack.source).name}")
    _say_written(args, "sweep")
    return 0


def _read_stack(args: Namespace) -> ZStack:
    from microdiffusion.daemon.calibration import read_stack
    from microdiffusion.errors import ConfigError

    if args.stack is None:
        raise ConfigError("Name the file of a z-stack, or take one with --acquire.")
    if args.from_um is not None or args.to_um is not None:
        raise ConfigError("--from-um and --to-um belong to --acquire; a file's positions: --step-um, --z-um.")
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
        kind = "layer" if args.layer else "beads"
        config = options.config_from(args, {"specimen.kind": kind})
    direction = 1.0 if args.to_um >= args.from_um else -1.0
    z_um = args.from_um + direction * abs(args.step_um) * np.arange(count)
    images, z_um, pixel_um, full = take_stack(config, z_um, note=complain)
    if args.keep_stack:
        write_stack(args.keep_stack, images, z_um, pixel_um)
    source = str(args.keep_stack) if args.keep_stack else f"acquired with {args.config or 'the defaults'}"
    return ZStack(images.astype(np.float32), z_um, args.saturation or full, source)


def _camera(args: Namespace) -> int:
    from microdiffusion.config import write_calibration
    from microdiffusion.daemon.calibration import measure_camera, read_series

    names = (str(args.dark), str(args.flat))
    result = measure_camera(read_series(args.dark), read_series(args.flat), full=args.saturation, names=names)
    _say_camera(result)
    write_calibration(args.output, _camera_file(result, ", ".join(names)))
    if args.plot:
        from microdiffusion.daemon.calibration import plot_camera

        plot_camera(result, args.plot, f"Photon transfer, {args.flat.name}")
    _say_written(args, "camera")
    return 0


def _say_beam(beam: BeamResult) -> None:
    from microdiffusion.daemon.calibration import beam_text

    say(beam_text(beam, columns=_columns()))
    what = "tiles of the image" if beam.specimen == "layer" else f"of {beam.found} beads found"
    left = [f"{beam.overlapping} overlap", f"{beam.saturated} saturated"]
    say(f"  length      {beam.length_um:.4g} µm, full width at half maximum {_between(beam.length_interval)}")
    say(
        f"  equivalent  {beam.equivalent_um:.4g} µm, box of the same sum and sum of squares "
        f"{_between(beam.equivalent_interval)}"
    )
    say(f"  centroid    {beam.centroid_um:+.3g} µm from the middle {_between(beam.centroid_interval)}")
    say(f"  from        {beam.beads} {what}" + ("" if beam.specimen == "layer" else f" ({', '.join(left)})"))
    say(
        f"  residual    {beam.residual:.1%} of the height; step {beam.step_um:g} µm over {beam.range_um:g} µm"
    )
    _say_warnings(beam.warnings)


def _say_camera(camera: CameraResult) -> None:
    from microdiffusion.daemon.calibration import camera_text

    say(camera_text(camera, columns=_columns()))
    say(f"  offset      {camera.offset:.5g} counts {_between(camera.offset_interval)}")
    say(f"  read noise  {camera.read_noise:.4g} counts {_between(camera.read_noise_interval)}")
    say(f"  gain        {camera.gain:.4g} counts per photon {_between(camera.gain_interval)}")
    say(f"  hot pixels  {camera.hot_pixels}; saturated {camera.saturated_share:.2%}")
    _say_warnings(camera.warnings)


def _between(interval: tuple[float, float]) -> str:
    return f"(95 %: {interval[0]:.4g} to {interval[1]:.4g})"


def _say_warnings(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        say(f"  warning     {warning}")


def _say_written(args: Namespace, table: str) -> None:
    if args.plot:
        say(f"wrote {args.plot}")
    say(f'wrote {args.output}; in the configuration, under [{table}]: calibration = "{args.output.name}"')


def _columns() -> int:
    return min(shutil.get_terminal_size((80, 24)).columns, 100) if sys.stdout.isatty() else 80


def _origin(source: str, warnings: tuple[str, ...]) -> dict[str, Any]:
    from microdiffusion.daemon.engine import provenance

    now = time.time()
    known = provenance(None)
    return {
        "date_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "date_local": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now)),
        "source": source,
        "versions": {name: known[name] for name in ("mdd", "python", "numpy") if name in known},
        "warnings": warnings,
    }


def _beam_file(beam: BeamResult, source: str) -> BeamFile:
    from microdiffusion.config import BeamFile

    return BeamFile(
        kind="beam",
        length_um=beam.length_um,
        length_interval_um=beam.length_interval,
        equivalent_um=beam.equivalent_um,
        equivalent_interval_um=beam.equivalent_interval,
        centroid_um=beam.centroid_um,
        spacing_um=float(beam.z_um[1] - beam.z_um[0]),
        weights=tuple(beam.weights.tolist()),
        low=tuple(beam.low.tolist()),
        high=tuple(beam.high.tolist()),
        figures={
            "specimen": beam.specimen,
            "beads": beam.beads,
            "found": beam.found,
            "overlapping": beam.overlapping,
            "saturated": beam.saturated,
            "partly_seen": beam.partial,
            "hot_pixels": beam.hot_pixels,
            "residual": beam.residual,
            "drift_px": beam.drift_px,
            "step_um": beam.step_um,
            "range_um": beam.range_um,
        },
        origin=_origin(source, beam.warnings),
    )


def _camera_file(camera: CameraResult, source: str) -> CameraFile:
    from microdiffusion.config import CameraFile

    return CameraFile(
        kind="camera",
        offset=camera.offset,
        offset_interval=camera.offset_interval,
        read_noise=camera.read_noise,
        read_noise_interval=camera.read_noise_interval,
        gain=camera.gain,
        gain_interval=camera.gain_interval,
        figures={
            "signal": camera.signal,
            "dark_frames": camera.dark_frames,
            "flat_frames": camera.flat_frames,
            "hot_pixels": camera.hot_pixels,
            "saturated_share": camera.saturated_share,
        },
        origin=_origin(source, camera.warnings),
    )
