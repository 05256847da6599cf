"""`mdd doctor`: what can go wrong, looked at before it does.

One module a theme. In each, *probes* ask the machine and *checks* judge what they were told: a check is a
pure function of plain facts, so that all its outcomes are tested on any machine. What may hang or crash
(torch's libraries, a driver) is asked in a child process, and nobody waits longer than `examine.LIMIT_S`.
"""

from microdiffusion.daemon.doctor.page import WIDTH, page, report
from microdiffusion.daemon.doctor.run import Line, examine
from microdiffusion.daemon.doctor.subprocess_probe import Child

__all__ = ["WIDTH", "Child", "Line", "examine", "page", "report"]
