"""Make a projection file from a volume: what a Bessel microscope would have recorded of it.

  mdd simulate volume.h5 --length-um 12 --step-um 12 --output projections.h5
  mdd simulate volume.h5 --length-um 12 --step-um 12 --output projections.h5 --photons 100 --gain 0.5

VOLUME is HDF5 with a dataset `volume`, (Z, Y, X) or (T, Z, Y, X), or a TIFF stack. The truth is kept in
the file, so that a reconstruction can be judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("volume", type=options.file, metavar="VOLUME")
    parser.add_argument(
        "--length-um", type=options.positive, required=True, metavar="L", help="length of the slab"
    )
    parser.add_argument(
        "--step-um", type=options.positive, required=True, metavar="S", help="distance of neighbouring slabs"
    )
    parser.add_argument("--output", type=options.file, required=True, metavar="FILE")
    parser.add_argument(
        "--voxel-size-um",
        type=options.positive,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="left out: what the file says, else 1 µm",
    )
    parser.add_argument(
        "--alternate",
        "--alternate-offset",
        action="store_true",
        help="every other sweep half a step deeper",
    )
    parser.add_argument(
        "--sweeps", type=options.count, metavar="N", help="left out: one for each volume; the last one stays"
    )
    parser.add_argument(
        "--hold-out", action="store_true", help="one extra projection per sweep, to judge with"
    )
    parser.add_argument("--normalise", action="store_true", help="percentiles 1 and 99.9 to 0 and 1, clipped")
    noise = parser.add_argument_group("noise: Gaussian, or a camera's")
    noise.add_argument(
        "--noise", type=options.not_negative, default=0.0, metavar="R", help="sigma relative to the range (0)"
    )
    noise.add_argument("--photons", type=options.positive, metavar="N", help="where it is brightest")
    noise.add_argument(
        "--gain", type=options.positive, default=1.0, metavar="G", help="counts per photon (1)"
    )
    noise.add_argument(
        "--offset", type=options.finite, default=0.0, metavar="C", help="counts of a dark frame (0)"
    )
    noise.add_argument(
        "--read-noise", type=options.not_negative, default=0.0, metavar="C", help="counts of a dark frame (0)"
    )
    noise.add_argument("--seed", type=options.seed, default=0, metavar="N")


def run(args: Namespace) -> int:
    """Simulate."""
    from microdiffusion.drivers.simulate import simulate

    output = simulate(
        args.volume,
        length_um=args.length_um,
        step_um=args.step_um,
        output=args.output,
        voxel_size_um=tuple(args.voxel_size_um) if args.voxel_size_um else None,
        noise=args.noise,
        photons=args.photons,
        gain=args.gain,
        offset=args.offset,
        read_noise=args.read_noise,
        normalise=args.normalise,
        seed=args.seed,
        alternate=args.alternate,
        hold_out=args.hold_out,
        sweeps=args.sweeps,
    )
    say(f"wrote {output}")
    return 0
