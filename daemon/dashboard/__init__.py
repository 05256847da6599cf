"""The live terminal dashboard."""

from microdiffusion.daemon.dashboard.app import LiveDashboard
from microdiffusion.daemon.dashboard.panels import page
from microdiffusion.daemon.dashboard.remote import Remote, control_beside

__all__ = ["LiveDashboard", "Remote", "control_beside", "page"]
