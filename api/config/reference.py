"""Writing a configuration: as commented TOML, and as the reference page of the documentation.

Both come from the same keys as the checks, so they cannot promise what is refused. Pure functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.config.config_keys import Key, Path_, keys, tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microdiffusion.config.models import Config

COMMENT_COLUMN = 38
WIDTH = 100

INTRODUCTION = """\
# Configuration

A configuration is a TOML file, or one of the presets that ship with mdd:

```bash
mdd serve --config my.toml
mdd serve --config bessel-2p-neurons --set sweep.step_um=10
mdd config show bessel-2p-neurons > my.toml
```

What is closer to you wins: the command line (`--set section.key=value`), then the environment
(`MDD_SECTION__KEY`, e.g. `MDD_SWEEP__STEP_UM=12` or `MDD_ENGINE__INR__WARM_STEPS=10`), then the file or
preset, then the default. `none` on the command line or in the environment empties a key that may be
empty; in a file, leave the key out. Relative paths in a file are relative to that file. The end of a
name is its unit: `_um` µm, `_ms` milliseconds, `_s` seconds, `_mb` MB, `_hz` per second.

`mdd config check FILE` names the line of anything that is unknown or impossible.

This page is written by `mdd config reference`; a test keeps it up to date.
"""


def dump_toml(config: Config) -> str:
    """Return `config` as commented TOML that `load_config` reads back to the same.

    A key that is empty is there as a comment, so that the text shows everything that can be said.
    """
    lines = []
    for table, description in tables().items():
        if table:
            lines += ["", f"[{'.'.join(table)}]  # {description}"]
        for key in keys().values():
            if key.path[:-1] == table:
                lines += _assignment(key, _value(config, key))
    return "\n".join(lines) + "\n"


def chosen_toml(config: Config, chosen: Mapping[Path_, str], introduction: str) -> str:
    """Return the `chosen` keys of `config` as TOML; each says what it means and where its value is from.

    Parameters
    ----------
    chosen : mapping
        Path of a key to a remark on its value ("from the camera"); all other keys keep their defaults.
    introduction : str
        Lines at the top, written as comments.
    """
    lines = [f"# {line}".rstrip() for line in introduction.splitlines()]
    for table, description in tables().items():
        rows = [key for key in keys().values() if key.path[:-1] == table and key.path in chosen]
        if rows and table:
            lines += ["", f"[{'.'.join(table)}]  # {description}"]
        for key in rows:
            value = _value(config, key)
            text = f"# {key.path[-1]} =" if value is None else f"{key.path[-1]} = {toml_value(value)}"
            lines += [f"# {key.description}.", f"#   here: {chosen[key.path]}", text]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return the reference page in Markdown."""
    parts = [INTRODUCTION]
    for table, description in tables().items():
        rows = [key for key in keys().values() if key.path[:-1] == table]
        heading = f"## `[{'.'.join(table)}]`\n\n{description}" if table else "## At the top of the file"
        parts.append(f"{heading}\n\n| key | default | expected | meaning |\n|---|---|---|---|")
        parts[-1] += "".join(f"\n| {' | '.join(_row(key))} |" for key in rows) + "\n"
    return "\n".join(parts)


def toml_value(value: object) -> str:
    """Return `value` (bool, int, float, text, path, or a sequence of them) as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Path):
        return toml_value(value.as_posix())
    if isinstance(value, str):
        # A TOML basic string is a JSON string, but for the one control character that JSON lets through.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    raise TypeError(f"TOML has no value for {type(value).__name__}")


def _value(config: Config, key: Key) -> Any:
    value: Any = config
    for name in key.path:
        value = getattr(value, name)
    return value


def _assignment(key: Key, value: object) -> list[str]:
    text = f"# {key.path[-1]} =" if value is None else f"{key.path[-1]} = {toml_value(value)}"
    line = f"{text:<{COMMENT_COLUMN}}  # {key.description}"
    return [line] if len(line) <= WIDTH else [f"# {key.description}", text]


def _row(key: Key) -> tuple[str, str, str, str]:
    default = "" if key.default is None else f"`{toml_value(key.default)}`"
    cells = (f"`{key.path[-1]}`", default, key.expected, key.description)
    name, default, expected, meaning = (cell.replace("|", "\\|") for cell in cells)
    return name, default, expected, meaning
