"""Alarms, the log file and Prometheus metrics."""

from microdiffusion.daemon.monitoring.monitor import Watchman

__all__ = ["Watchman"]
