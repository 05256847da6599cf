"""Cell bodies of one volume: found with scikit-image, counted, measured in µm, and drawn.

    python segmentation.py RUN.h5 --output segmentation.png --table segmentation.csv

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
from skimage import feature, filters, measure, morphology, segmentation

import microdiffusion

parser = argparse.ArgumentParser()
parser.add_argument("run", help="run file of mdd")
parser.add_argument("--output", default="segmentation.png")
parser.add_argument("--table", default="segmentation.csv")
parser.add_argument("--time-points", type=int, default=10, help="volumes whose mean is segmented")
parser.add_argument("--soma-um", type=float, default=10.0, help="diameter of a cell body, roughly")
parser.add_argument("--channel", type=int, default=0)
args = parser.parse_args()

# %% The mean of some volumes: less noise, and all depths that sweeps look from
with microdiffusion.open_run(args.run) as run:
    chosen = run.written(args.channel)[: args.time_points]
    place = (chosen,) if len(run.header.channels) == 1 else (chosen, args.channel)
    volume = run.volume[place].mean(axis=0, dtype=np.float32) - run.header.camera.offset
    voxel = np.array(run.voxel_size_um)
    name = run.header.name

# %% Cell bodies are thick and bright: what is thinner than half of one is taken away, then what is dim
smooth = ndimage.gaussian_filter(volume, args.soma_um / 12 / voxel)
box = [max(round(args.soma_um / 2 / edge), 1) for edge in voxel]
thick = morphology.opening(smooth, np.ones(box, dtype=bool))
tissue = thick[thick > filters.threshold_otsu(thick)]  # vessels and bodies, without the dark
inside = thick > filters.threshold_otsu(tissue)
inside = ndimage.binary_fill_holes(inside)

# %% Bodies that touch are cut apart where the mask is narrow
depth_um = ndimage.distance_transform_edt(inside, sampling=voxel)
apart = np.maximum((args.soma_um / 2 / voxel).astype(int), 1)
seeds = feature.peak_local_max(
    ndimage.gaussian_filter(depth_um, 1.0 / voxel),
    footprint=np.ones(2 * apart + 1),
    labels=measure.label(inside),
)
markers = np.zeros(volume.shape, dtype=np.int32)
markers[tuple(seeds.T)] = np.arange(1, len(seeds) + 1)
labels = segmentation.watershed(-depth_um, markers, mask=inside)
least = 0.3 * np.pi / 6 * args.soma_um**3 / voxel.prod()  # a third of such a body, in voxels
sizes = np.bincount(labels.ravel())
labels[(sizes < least)[labels]] = 0
labels, _, _ = segmentation.relabel_sequential(labels)

# %% Measure, in µm and counts
bodies = measure.regionprops(labels, intensity_image=volume, spacing=tuple(voxel))
with open(args.table, "w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["label", "z_um", "y_um", "x_um", "volume_um3", "diameter_um", "mean_counts"])
    for body in bodies:
        sphere = (6 * body.area / np.pi) ** (1 / 3)
        table.writerow([body.label, *np.round(body.centroid, 2), round(body.area, 1), round(sphere, 2),
                        round(float(body.mean_intensity), 1)])  # fmt: skip

# %% Draw: outlines from above and from the side, sizes beside them
colours = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#B8A900"]  # Okabe, Ito
size_z, size_y, size_x = np.array(volume.shape) * voxel
figure = plt.figure(figsize=(9, 8), layout="constrained")
grid = figure.add_gridspec(2, 2, width_ratios=[1.3, 1], height_ratios=[size_y, size_z])
top, side = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
chart = figure.add_subplot(grid[:, 1])
views = ((top, 0, (0, size_x, size_y, 0), "y (µm)"), (side, 1, (0, size_x, size_z, 0), "z (µm)"))
for axis, along, extent, label in views:
    flat = volume.max(axis=along)
    axis.imshow(flat, cmap="gray", extent=extent, vmax=np.percentile(flat, 99.7))
    axis.set(ylabel=label)
    rows = (np.arange(flat.shape[0]) + 0.5) * voxel[1 - along]
    columns = (np.arange(flat.shape[1]) + 0.5) * voxel[2]
    for body in bodies:
        colour = colours[(body.label - 1) % len(colours)]
        mask = (labels == body.label).any(axis=along)
        axis.contour(columns, rows, mask, [0.5], colors=[colour], linewidths=1.8)
        z, y, x = np.array(body.centroid) + voxel / 2
        y = y if along == 0 else z
        axis.text(x, y, str(body.label), color="white", weight="bold", ha="center", va="center")
top.set(title=f"{name}: {len(bodies)} cell bodies, mean of {len(chosen)} volumes")
side.set(xlabel="x (µm)")
chart.barh(
    [str(body.label) for body in bodies],
    [body.area for body in bodies],
    color=[colours[(body.label - 1) % len(colours)] for body in bodies],
)
chart.invert_yaxis()
chart.set(xlabel="volume (µm³)", ylabel="cell body", title="Size")
chart.spines[["top", "right"]].set_visible(False)
figure.savefig(args.output, dpi=120)
print(args.output)
print(args.table)
