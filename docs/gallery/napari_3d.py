"""A run in napari, in three dimensions: to turn by hand, or as a picture.

    python napari_3d.py RUN.h5                        a window that follows the run while it goes on
    python napari_3d.py RUN.h5 --output napari_3d.png a picture, and it ends

Needs: python -m pip install "microdiffusion-daemon[analysis]"
"""

# %% What to look at
import argparse

try:
    import napari
except ImportError:
    raise SystemExit('It needs napari: python -m pip install "microdiffusion-daemon[analysis]"') from None
import numpy as np
from qtpy.QtWidgets import QApplication

import microdiffusion

parser = argparse.ArgumentParser()
parser.add_argument("run", help="run file of mdd")
parser.add_argument("--output", default="", help="a picture instead of a window")
parser.add_argument("--size", type=int, nargs=2, default=(1100, 800), metavar=("W", "H"))
args = parser.parse_args()

# %% The reader of mdd gives the layers their scale in µm
viewer = napari.Viewer(ndisplay=3)
layers = viewer.open(args.run, plugin="microdiffusion-daemon")
for layer in layers:
    layer.rendering = "mip"
    if layer.multiscale and hasattr(layer, "locked_data_level"):
        layer.locked_data_level = 0  # in 3D napari takes the coarsest level by itself
    if len(layers) == 1:
        layer.colormap = "inferno"

# %% The time point at which most was going on
with microdiffusion.open_run(args.run) as run:
    coarse = len(run.pyramid) - 1
    written = run.written()
    light = [float(np.percentile(run.pyramid[coarse][t], 99.5)) for t in written]
viewer.dims.set_current_step(0, int(written[int(np.argmax(light))]))

# %% From the side and a little above
viewer.scale_bar.visible = True
viewer.reset_view()
viewer.camera.angles = (8.0, 32.0, 60.0)

if args.output:
    viewer.window.resize(*args.size)
    QApplication.processEvents()  # let it draw
    viewer.screenshot(args.output, canvas_only=True, flash=False)
    viewer.close()
    print(args.output)
else:
    napari.run()
