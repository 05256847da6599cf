"""The sending side of the wire: frames are kept, in memory or in a journal, until acknowledged."""

from microdiffusion.sender.delivery import deliver
from microdiffusion.sender.faults import Faults
from microdiffusion.sender.journal import Journal, in_use, left_over
from microdiffusion.sender.sender import Sender, SenderStats

__all__ = ["Faults", "Journal", "Sender", "SenderStats", "deliver", "in_use", "left_over"]
