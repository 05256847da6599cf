"""Follow a run while it goes on: each volume as soon as it is in the file, with how late that was.

    python live.py RUN.h5 --output live.png

Start it during the run, in another terminal; it draws anew with each volume and ends with the run. What was
written before it started comes first. Your own analysis, or what decides about the next stimulus, goes where
`measure` is called.

Needs: python -m pip install "microdiffusion-daemon[analysis]"
"""

# %% What to look at
import argparse

try:
    import matplotlib as mpl
except ImportError:
    raise SystemExit('It needs matplotlib: python -m pip install "microdiffusion-daemon[analysis]"') from None

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import microdiffusion

parser = argparse.ArgumentParser()
parser.add_argument("run", help="run file of mdd, which may still be growing")
parser.add_argument("--output", default="live.png")
parser.add_argument("--timeout-s", type=float, default=60.0, help="how long without a volume is the end")
args = parser.parse_args()


# %% What is made of a volume
def measure(volume: np.ndarray) -> float:
    """Return the mean of the brightest hundredth of the voxels, counts."""
    return float(np.mean(volume[volume >= np.percentile(volume, 99)]))


def draw(projection: np.ndarray) -> None:
    """Draw the newest volume, what was measured so far, and how late the volumes came."""
    axes = figure.subplots(2, 2, width_ratios=[1.1, 1.6])
    grid = axes[0, 0].get_gridspec()
    axes[0, 0].remove()
    axes[1, 0].remove()
    picture, bright, late = figure.add_subplot(grid[:, 0]), axes[0, 1], axes[1, 1]
    height, width = projection.shape[0] * voxel[1], projection.shape[1] * voxel[2]
    picture.imshow(projection, cmap="inferno", extent=(0, width, height, 0))
    picture.set(xlabel="x (µm)", ylabel="y (µm)", title=f"last to come: the volume at {times[-1]:.1f} s")
    order = np.argsort(times)  # a volume that was put off comes after later ones
    bright.plot(np.array(times)[order], np.array(values)[order], color="#0072B2", lw=1.5)
    bright.set(ylabel="brightest 1 % (counts)", title=f"{len(times)} volumes so far")
    late.plot(times, latencies, ".", color="#D55E00")
    late.set(xlabel="time (s)", ylabel="last frame to volume (s)", yscale="log")
    for axis in (bright, late):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.output, dpi=120)
    figure.clear()


# %% Follow
figure = plt.figure(figsize=(10, 4.6), layout="constrained")
times, values, latencies = [], [], []
with microdiffusion.open_run(args.run) as run:
    voxel = run.voxel_size_um
    for t, volume in run.follow(timeout_s=args.timeout_s, channel=0):
        times.append(run.times.reshape(len(run), -1)[t, 0])
        latencies.append(run.values("latency_s").reshape(len(run), -1)[t, 0])
        values.append(measure(volume))
        print(f"time point {t}: {values[-1]:.0f} counts, {latencies[-1]:.2f} s late", flush=True)
        draw(volume.max(axis=0))
    for gap in run.gaps():
        print(f"time point {gap.time_point} has no volume: {gap.reason or gap.status.name.lower()}")
print(args.output)
