"""Runs in the libraries of analysts: dask, xarray and napari."""
