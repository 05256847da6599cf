"""What of the configuration may change while a run goes on, and nothing else: the one list of it.

`LIVE` are settings of the engine that take effect between two sweeps and leave sessions, run files and
processes as they are. Pure functions.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from microdiffusion.config import EngineConfig
from microdiffusion.errors import ConfigError

LIVE = ("engine.steps", "engine.guidance", "engine.policy", "engine.update")
"""Settings that `EngineProcess.set` takes."""


def changed(config: EngineConfig, key: str, value: Any) -> EngineConfig:
    """Return the engine's configuration with one live setting changed; `value` may be its text.

    Raises
    ------
    ConfigError
        It may not be changed while the daemon runs, or the value is impossible.
    """
    if key not in LIVE:
        raise ConfigError(
            f"{key} cannot be changed while the daemon runs, only {', '.join(LIVE)}: "
            "set it in the configuration and start again."
        )
    name = key.removeprefix("engine.")
    try:
        return EngineConfig.model_validate(config.model_dump() | {name: value})
    except ValidationError as error:
        raise ConfigError(f"{key} = {value!r} is not possible: {error.errors()[0]['msg'].lower()}.") from None
