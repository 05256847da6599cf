"""The engine process as the daemon sees it: what is queued, who works, what is restarted."""

from microdiffusion.daemon.engine.messages import EngineInfo
from microdiffusion.daemon.engine.process import EngineProcess
from microdiffusion.daemon.engine.provenance import provenance
from microdiffusion.daemon.engine.scheduler import Job

__all__ = ["EngineInfo", "EngineProcess", "Job", "provenance"]
