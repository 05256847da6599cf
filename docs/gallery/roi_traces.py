"""Activity over time: regions that flicker are found by themselves, and each gets a ΔF/F trace.

    python roi_traces.py RUN.h5 --output roi_traces.png --table roi_traces.csv

Sweeps look from different depths (`sweep.offsets`). Where earlier sweeps count as well (`engine.memory =
"session"`, `/mdd/merged`) the session knows the structure, and what is left of that in a trace is small; the
first volumes of a session, which it begins with, have a baseline of their own.

Needs: python -m pip install "microdiffusion-daemon[analysis]"
"""

# %% What to look at
import argparse
import csv

try:
    import matplotlib as mpl
except ImportError:
    raise SystemExit('It needs matplotlib: python -m pip install "microdiffusion-daemon[analysis]"') from None

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

import microdiffusion

parser = argparse.ArgumentParser()
parser.add_argument("run", help="run file of mdd")
parser.add_argument("--output", default="roi_traces.png")
parser.add_argument("--table", default="roi_traces.csv")
parser.add_argument("--regions", type=int, default=8, help="at most")
parser.add_argument("--radius-um", type=float, default=4.0, help="of a region")
parser.add_argument("--channel", type=int, default=0)
args = parser.parse_args()

# %% Read the volumes that there are, and from which depths each looked
with microdiffusion.open_run(args.run) as run:
    written = run.written(args.channel)
    place = (written,) if len(run.header.channels) == 1 else (written, args.channel)
    volumes = run.volume[place].astype(np.float32) - run.header.camera.offset  # (T, Z, Y, X), dark is zero
    frames = run.values("frames/z_um").reshape(len(run), len(run.header.channels), -1)
    used = ~run.values("frames/held_out").astype(bool).reshape(frames.shape)
    first_um = np.nanmin(np.where(used, frames, np.nan)[written, args.channel], axis=-1)
    merged = run.values("merged").reshape(len(run), -1)[written, args.channel]
    times = run.times.reshape(len(run), -1)[written, args.channel]
    voxel = np.array(run.voxel_size_um)
looked = np.where(merged > 0, 0.0, 1 + first_um.round(3))
kind = np.unique(looked, return_inverse=True)[1].ravel()  # which volumes looked in the same way
step_s = float(np.median(np.diff(times)))

# %% Where it flickers: how much brighter than usual a place gets, in space no finer than a region
sigma = args.radius_um / 2 / voxel
smooth = np.stack([ndimage.gaussian_filter(volume, sigma) for volume in volumes])
usual = np.stack([np.median(smooth[kind == k], axis=0) for k in range(kind.max() + 1)])
flicker = (smooth - usual[kind]).std(axis=0)
reach = np.ceil(2 * args.radius_um / voxel).astype(int)
bright = smooth.mean(axis=0)
fits = (flicker > 0) & (bright > 0.3 * bright.max())  # where it is dark a ratio says nothing
peaks = np.argwhere((ndimage.maximum_filter(flicker, 2 * reach + 1) == flicker) & fits)
centres = sorted(peaks, key=lambda at: -flicker[tuple(at)])[: args.regions]

# %% ΔF/F of each: the mean of a ball; F0 is the 20th percentile of volumes that looked in the same way
grid = np.stack(np.meshgrid(*(np.arange(n) for n in volumes.shape[1:]), indexing="ij"), axis=-1)
traces = []
for centre in centres:
    ball = (((grid - centre) * voxel) ** 2).sum(axis=-1) <= args.radius_um**2
    light = volumes[:, ball].mean(axis=1)
    base = np.array([np.percentile(light[kind == k], 20) for k in range(kind.max() + 1)])[kind]
    traces.append((light - base) / np.maximum(base, 1.0))

with open(args.table, "w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["time_s", *(f"roi_{number}_dff" for number in range(1, len(traces) + 1))])
    table.writerows(zip(times, *traces, strict=True))

# %% Draw: the regions on the mean of all volumes, the traces beside it in the same colours
# After Okabe and Ito: told apart by the colour-blind as well.
colours = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#B8A900", "#777777"]
extent = (0, volumes.shape[3] * voxel[2], volumes.shape[2] * voxel[1], 0)
figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 5), gridspec_kw={"width_ratios": [1, 1.35]}, layout="constrained"
)
mean = volumes.mean(axis=0).max(axis=0)
left.imshow(mean, cmap="gray", extent=extent, vmax=np.percentile(mean, 99.7))
left.set(xlabel="x (µm)", ylabel="y (µm)", title="Regions on the maximum of the mean volume")
spacing = max(max((np.ptp(trace) for trace in traces), default=1.0), 0.2) * 0.75
for number, (centre, trace) in enumerate(zip(centres, traces, strict=True)):
    colour = colours[number % len(colours)]
    z, y, x = (centre + 0.5) * voxel
    left.add_patch(plt.Circle((x, y), args.radius_um, fill=False, color=colour, lw=2))
    left.text(x + 1.3 * args.radius_um, y, str(number + 1), color=colour, weight="bold", va="center", size=12)
    right.plot(times, trace - number * spacing, color=colour, lw=1.4)
    right.text(times[0] - 0.01 * np.ptp(times), -number * spacing, f"{number + 1}", color=colour,
               ha="right", va="center", weight="bold")  # fmt: skip
right.set(xlabel="time (s)", yticks=[], title=f"ΔF/F, a volume each {step_s:.2f} s")
right.spines[["left", "top", "right"]].set_visible(False)
end = times[-1] + 0.02 * np.ptp(times)
right.plot([end, end], [0, 0.5], color="black", lw=2.5, clip_on=False)
right.text(end + 0.01 * np.ptp(times), 0.25, "0.5 ΔF/F", va="center", rotation=90)
figure.savefig(args.output, dpi=120)
print(args.output)
print(args.table)
