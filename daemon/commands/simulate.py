"""Make a projection file from a volume, as a Bessel microscope would record it.

  mdd simulate volume.h5 --length-um 12 --step-um 12 --output projections.h5

VOLUME is HDF5 with a dataset `volume`, (Z, Y, X) or (T, Z, Y, X), or a TIFF
stack. The file keeps the true volume, so that a reconstruction can be judged.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from microdiffusion.daemon.cli import options, say


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "VOLUME", "volume file", options.file)
    options.add(parser, "--length-um L", "length of the slab", options.positive, required=True)
    options.add(parser, "--step-um S", "distance of neighbouring slabs", options.positive, required=True)
    options.add(parser, "--output FILE", "projection file to write", options.file, required=True)
    about = "default: what the file says, else 1 µm"
    options.add(parser, "--voxel-size-um Z Y X", about, options.positive, nargs=3)
    options.add(
        parser,
        "--offsets",
        "where each sweep starts within a step",
        choices=("golden", "alternate", "fixed"),
        default="fixed",
    )
    options.add(
        parser, "--sweeps N", "default: one for each volume; the last volume is repeated", options.count
    )
    options.add(parser, "--hold-out", "one more projection per sweep, to judge with")
    options.add(parser, "--normalise", "scale percentiles 1 and 99.9 to 0 and 1, and clip")
    noise = parser.add_argument_group("noise: Gaussian, or a camera's")
    about = "sigma relative to the range"
    options.add(noise, "--noise R", about, options.not_negative, default=0.0)
    options.add(noise, "--photons N", "photons where it is brightest", options.positive)
    options.add(noise, "--gain G", "counts per photon", options.positive, default=1.0)
    options.add(noise, "--offset C", "counts of a dark frame", options.finite, default=0.0)
    options.add(noise, "--read-noise C", "counts, of a dark frame", options.not_negative, default=0.0)
    options.add(noise, "--seed N", "seed of the noise", options.seed, default=0)


def run(args: Namespace) -> int:
    """Simulate."""
    from microdiffusion.drivers.simulate import simulate
    from microdiffusion.files import open_projections
    from microdiffusion.text import count_noun

    values = dict(vars(args))
    path = simulate(values.pop("volume"), **values)
    with open_projections(path) as made:
        sweeps, each = len(made), len(made.stage(0))
        voxel = " x ".join(f"{edge:g}" for edge in made.header.voxel_size_um)
    kind = "" if args.noise or args.photons else ", without noise (--noise 0.01 or --photons 1000 adds some)"
    say(
        f"wrote {path}: {count_noun(sweeps, 'sweep')} of {count_noun(each, 'projection')}, "
        f"voxel {voxel} µm (z, y, x){kind}"
    )
    return 0
