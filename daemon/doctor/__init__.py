"""`mdd doctor`: checks for what can go wrong, before it does.

One module per theme. Probes ask the machine; a check judges plain facts in a pure function, so that every
outcome is tested on any machine. What may hang or crash (torch, a driver's library) runs in a child process.
"""

from microdiffusion.daemon.doctor.pace import measured_pace
from microdiffusion.daemon.doctor.page import page, report
from microdiffusion.daemon.doctor.run import examine

__all__ = ["examine", "measured_pace", "page", "report"]
