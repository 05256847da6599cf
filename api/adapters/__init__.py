"""Runs in the libraries of analysts: dask, xarray and napari."""

from microdiffusion.adapters.arrays import to_dask, to_xarray

__all__ = ["to_dask", "to_xarray"]
