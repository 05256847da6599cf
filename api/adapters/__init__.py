"""Runs in the libraries of analysts: dask, xarray, pandas and napari."""

from microdiffusion.adapters.arrays import to_dask, to_xarray
from microdiffusion.adapters.tables import to_pandas

__all__ = ["to_dask", "to_pandas", "to_xarray"]
