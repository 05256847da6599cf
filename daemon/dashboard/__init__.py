"""The live terminal dashboard."""

from microdiffusion.daemon.dashboard.app import LiveDashboard
from microdiffusion.daemon.dashboard.panels import page
from microdiffusion.daemon.dashboard.remote import Remote, control_beside
from microdiffusion.daemon.dashboard.terminal import enable_windows_sequences

__all__ = ["LiveDashboard", "Remote", "control_beside", "enable_windows_sequences", "page"]
