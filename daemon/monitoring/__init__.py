"""Alarms, the log file and Prometheus metrics."""

from microdiffusion.daemon.monitoring.monitor import Monitor

__all__ = ["Monitor"]
