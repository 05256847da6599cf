"""The daemon as a whole: starts, watches and closes everything that `mdd serve` runs."""

from microdiffusion.daemon.server.serve import serve

__all__ = ["serve"]
