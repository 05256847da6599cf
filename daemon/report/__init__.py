"""A run as one self-contained HTML page."""

from microdiffusion.daemon.report.page import write_page

__all__ = ["write_page"]
