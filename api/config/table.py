"""Base of the configuration's tables, and of their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1)]


def key(default: Any, meaning: str, **limits: Any) -> Any:
    """Return a key of a table: its default, its meaning in a few words, and the limits of its value."""
    return Field(default, description=meaning, **limits)


class Table(BaseModel):
    """Base of all tables: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _no_control_characters(cls, value: Any) -> Any:
        if isinstance(value, Path) and any(character < " " for character in str(value)):
            raise ValueError(
                f"{str(value)!r} has a control character: in TOML write it in single quotes, 'D:\\new'"
            )
        return value
