"""A time-lapse as pictures: maximum-intensity projections from above and from the side, and a film.

    python timelapse.py RUN.h5 --output timelapse.png --film timelapse.gif

Needs: python -m pip install "microdiffusion-daemon[analysis]"
"""

# %% What to look at
import argparse

try:
    import matplotlib as mpl
except ImportError:
    raise SystemExit('It needs matplotlib: python -m pip install "microdiffusion-daemon[analysis]"') from None

mpl.use("Agg")  # draws into files, no screen needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

import microdiffusion

parser = argparse.ArgumentParser()
parser.add_argument("run", help="run file of mdd")
parser.add_argument("--output", default="timelapse.png")
parser.add_argument("--film", default="", metavar="FILE.gif", help="also as a film")
parser.add_argument("--channel", type=int, default=0)
args = parser.parse_args()

# %% Read one volume after the other, and keep two projections of each: a long run needs no more memory
above, beside, times = [], [], []
with microdiffusion.open_run(args.run) as run:
    voxel_z, voxel_y, voxel_x = run.voxel_size_um
    all_times = run.times.reshape(len(run), -1)[:, args.channel]
    for t in run.written(args.channel):  # time points without a volume are left out
        place = (t,) if len(run.header.channels) == 1 else (t, args.channel)
        volume = run.volume[place]
        above.append(volume.max(axis=0))
        beside.append(volume.max(axis=1))
        times.append(all_times[t])
    name = run.header.name
black, white = np.percentile(above, (2, 99.8))

# %% Six moments, evenly spread; the side view below each, to the same scale
moments = np.unique(np.linspace(0, len(times) - 1, 6).round().astype(int))
depth, height, width = len(beside[0]) * voxel_z, len(above[0]) * voxel_y, above[0].shape[1] * voxel_x
bar = min((5, 10, 20, 50, 100, 200), key=lambda length: abs(length - width / 5))

plt.style.use("dark_background")
columns = min(len(moments), 3)
rows = -(-len(moments) // columns)
figure, axes = plt.subplots(
    2 * rows,
    columns,
    figsize=(3.2 * columns, rows * 3.2 * (height + depth) / width + 1.1),
    gridspec_kw={"height_ratios": [height, depth] * rows},
    squeeze=False,
    layout="constrained",
)
figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
look = {"cmap": "inferno", "vmin": black, "vmax": white}
for axis in axes.flat:
    axis.set_axis_off()
for number, t in enumerate(moments):
    row, column = 2 * (number // columns), number % columns
    top, side = axes[row, column], axes[row + 1, column]
    image = top.imshow(above[t], extent=(0, width, height, 0), **look)
    side.imshow(beside[t], extent=(0, width, depth, 0), **look)
    top.text(0.03, 0.97, f"{times[t]:.1f} s", transform=top.transAxes, va="top", fontsize=12)
    if number == 0:
        top.plot([width * 0.95 - bar, width * 0.95], [height * 0.95] * 2, color="white", lw=3)
        top.text(width * 0.95 - bar / 2, height * 0.93, f"{bar} µm", ha="center", va="bottom", fontsize=11)
        top.text(0.97, 0.97, "xy", transform=top.transAxes, ha="right", va="top", alpha=0.8)
        side.text(0.97, 0.93, "xz", transform=side.transAxes, ha="right", va="top", alpha=0.8)
figure.colorbar(
    image, ax=axes, location="bottom", shrink=0.4, aspect=40, pad=0.01, label="brightest voxel (counts)"
)
figure.suptitle(f"{name}: {len(times)} volumes, maximum-intensity projections")
figure.savefig(args.output, dpi=120)
print(args.output)

# %% The same as a film, ten volumes a second
if args.film:
    figure, axis = plt.subplots(figsize=(4, 4 * height / width))
    figure.subplots_adjust(0, 0, 1, 1)
    axis.set_axis_off()
    image = axis.imshow(above[0], extent=(0, width, height, 0), **look)
    clock = axis.text(0.03, 0.97, "", transform=axis.transAxes, va="top", fontsize=12)
    axis.plot([width * 0.95 - bar, width * 0.95], [height * 0.95] * 2, color="white", lw=3)
    axis.text(width * 0.95 - bar / 2, height * 0.93, f"{bar} µm", ha="center", va="bottom")

    def show(t: int) -> None:
        """Draw time point t of the film."""
        image.set_data(above[t])
        clock.set_text(f"{times[t]:.1f} s")

    FuncAnimation(figure, show, frames=len(times)).save(args.film, writer=PillowWriter(fps=10), dpi=80)
    print(args.film)
