"""Watching over the daemon by machine: the log of its life, and figures for Prometheus."""
