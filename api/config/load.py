"""Reading a configuration: file, environment and command line become one checked `Config`.

Precedence: command line > environment (``MDD_SECTION__KEY``) > file or preset > default. Every value
remembers where it came from, so a refusal names the file and line, the variable or the option, says what
was expected and what came, and offers the closest key that exists. Relative paths in a file are relative
to that file, all others to the working folder. Pure functions, safe on any thread.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from microdiffusion.config.calibration import read_beam, read_camera
from microdiffusion.config.checks import check_sense
from microdiffusion.config.config_keys import Key, Path_, keys, tables, unit_of
from microdiffusion.config.models import Config
from microdiffusion.errors import ConfigError, GeometryError, MissingFileError, UserError
from microdiffusion.optics import sweep_positions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

EXCLUSIVE = (
    (("sweep", "step_um"), ("sweep", "overlap")),
    (("sweep", "calibration"), ("sweep", "axial_profile")),
)
"""Two ways to say the same thing: the one that is given closer to the user wins."""

CALIBRATED = {"sweep": ("length_um",), "camera": ("offset", "gain", "read_noise")}
"""Keys that a table's calibration file gives a value."""

PROJECTIONS_MOST = 10_000
"""Projections of a sweep beyond which somebody mistook a unit."""

INPUT_PATHS = (
    ("acquisition", "mm_app_path"),
    ("acquisition", "mm_config"),
    ("sweep", "calibration"),
    ("sweep", "axial_profile"),
    ("camera", "calibration"),
    ("engine", "weights"),
)


@dataclass(frozen=True, slots=True)
class Value:
    """A value that the user gave, and where: `source` names it, `text` is the TOML file that it stands in."""

    path: Path_
    value: Any
    source: str
    text: str = ""

    @property
    def origin(self) -> str:
        """Where the value was given: "demo.toml, line 12"."""
        lines = _line_numbers(self.text)
        number = next(
            (lines[self.path[:n]] for n in range(len(self.path), 0, -1) if self.path[:n] in lines), None
        )
        return f"{self.source}, line {number}" if number else self.source


def load_config(
    source: str | Path | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    beneath: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the checked configuration.

    Parameters
    ----------
    source
        A TOML file, the name of a preset (see `presets`), or None for the defaults.
    overrides : mapping
        Dotted key to value, from the command line; text is read as TOML where the key is not text, and
        ``none`` empties a key that may be empty.
    beneath : mapping
        The same, closer than the environment and farther than `overrides`: what a command begins with, such
        as the configuration that a run was recorded with.
    environ
        None: the process's environment.

    Raises
    ------
    ConfigError
        Not TOML, an unknown key, a wrong type or unit, an impossible value; one line per problem.
    MissingFileError
        The file, or a file that it names, does not exist.
    """
    text, label, folder = _read(source)
    layers = [
        _from_toml(text, label, folder),
        _from_environment(os.environ if environ is None else environ),
        _from_mapping(beneath or {}, "the command's own"),
        _from_mapping(overrides or {}, "command line"),
    ]
    given: dict[Path_, Value] = {}
    for layer in layers:
        for pair in EXCLUSIVE:
            for path, other in (pair, pair[::-1]):
                if path in layer and other not in layer:
                    given.pop(other, None)
        _give_way(given, layer)
        given.update(layer)
    _refuse(list(_misplaced(given)))
    _fill_in(given)
    try:
        config = Config.model_validate_json(json.dumps(_nested(given), default=str), strict=True)
    except ValidationError as error:
        problems = [
            _problem(given, tuple(detail["loc"]), detail["msg"], detail["type"]) for detail in error.errors()
        ]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None
    _check_paths(config, given)
    _check_geometry(config, given)
    return config


def _give_way(given: dict[Path_, Value], layer: Mapping[Path_, Value]) -> None:
    """Take out what a closer layer replaces: values by its calibration, a calibrated beam by its length."""
    for table, names in CALIBRATED.items():
        if (table, "calibration") in layer:
            for name in names:
                given.pop((table, name), None)
    if ("sweep", "length_um") in layer and ("sweep", "calibration") not in layer:
        given.pop(("sweep", "calibration"), None)


def _fill_in(given: dict[Path_, Value]) -> None:
    """Give the keys that calibration files speak of their values.

    Raises
    ------
    ConfigError
        The same place states another value.
    MissingFileError, InputFileError
        A calibration file does not exist, or is none.
    """
    for table, names in CALIBRATED.items():
        named = given.get((table, "calibration"))
        if named is None or not isinstance(named.value, str):
            continue
        file = Path(named.value)
        try:
            read = read_beam(file) if table == "sweep" else read_camera(file)
        except UserError as error:
            raise type(error)(f"{named.origin}: {error}") from None
        for name in names:
            measured = float(getattr(read, name))
            stated = given.get((table, name))
            if stated is None:
                given[(table, name)] = Value((table, name), measured, str(file))
                continue
            same = isinstance(stated.value, int | float) and math.isclose(
                stated.value, measured, rel_tol=1e-9
            )
            if stated.source == named.source and not same:
                raise ConfigError(
                    f"{stated.origin}: {table}.{name} = {_shown(stated.value)}, but {file.name}, which "
                    f"{table}.calibration names, says {measured:g}: leave one of the two out."
                )


def presets() -> tuple[str, ...]:
    """Return the names of the presets that ship with mdd."""
    shipped = files("microdiffusion.configs").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in shipped if file.name.endswith(".toml")))


def _read(source: str | Path | None) -> tuple[str, str, Path]:
    """Return the TOML text, the name that messages use, and the folder of relative paths."""
    if source is None:
        return "", "", Path()
    if isinstance(source, str) and re.fullmatch(r"[\w-]+", source):
        if source not in presets():
            raise ConfigError(
                f"There is no preset called {source}{_did_you_mean(source, presets())}: "
                f"expected a TOML file or one of {', '.join(presets())}."
            )
        return files("microdiffusion.configs").joinpath(f"{source}.toml").read_text("utf-8"), source, Path()
    file = _expanded(source)
    try:
        return file.read_text("utf-8-sig"), str(file), file.absolute().parent
    except FileNotFoundError:
        raise MissingFileError(f"There is no configuration file {file}: check its name.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not a text file in UTF-8 ({error.reason}): save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}).") from None


def _from_toml(text: str, label: str, folder: Path) -> dict[Path_, Value]:
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        line = re.search(r"line (\d+)", place)
        number = int(line[1]) if line else text.rstrip("\n").count("\n") + 1
        hint = ": write paths with / or in 'single quotes'" if "\\" in what or "hex value" in what else ""
        raise ConfigError(f"{label}, line {number}: not valid TOML ({what.lower()}){hint}.") from None
    given = {}
    for path, value in _leaves(parsed, ()):
        key = keys().get(path)
        if key is not None and key.is_path and isinstance(value, str):
            value = str(folder / _expanded(value))
        elif key is not None and key.is_path_list and isinstance(value, list):
            value = [str(folder / _expanded(v)) if isinstance(v, str) else v for v in value]
        given[path] = Value(path, value, label, text)
    return given


@lru_cache(maxsize=4)
def _line_numbers(text: str) -> dict[Path_, int]:
    """Return the line on which every table and key of a valid TOML text begins; `tomllib` keeps none.

    A text that is cut off at the end of a line is valid TOML exactly where a statement ends, so what the
    next longer valid text has in addition began on the line after. Only needed where something is refused.
    """
    lines = text.split("\n")
    found: dict[Path_, int] = {}
    begin = 1
    for end in range(1, len(lines) + 1):
        try:
            parsed = tomllib.loads("\n".join(lines[:end]) + "\n")
        except tomllib.TOMLDecodeError:
            continue
        for path in _all_paths(parsed, ()):
            found.setdefault(path, begin)
        begin = end + 1
    return found


def _all_paths(table: Mapping[str, Any], above: Path_) -> Iterator[Path_]:
    for name, value in table.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _all_paths(value, (*above, name))


def _expanded(path: str | Path) -> Path:
    """Return a path with ~ expanded; as it is where there is no such user, or no home."""
    return Path(os.path.expanduser(path))


def _leaves(table: Mapping[str, Any], above: Path_) -> Iterator[tuple[Path_, Any]]:
    for name, value in table.items():
        path = (*above, name)
        if isinstance(value, dict) and path in tables():
            yield from _leaves(value, path)
        else:
            yield path, value


def _from_environment(environ: Mapping[str, str]) -> dict[Path_, Value]:
    known = {key.environment: key for key in keys().values()}
    given = {}
    for variable, text in environ.items():
        name = variable.upper()
        if not name.startswith("MDD_"):
            continue
        if name in known:
            key = known[name]
            given[key.path] = Value(key.path, _parsed(text, key), f"environment variable {variable}")
        elif "__" in name or get_close_matches(name, known, cutoff=0.9):
            raise ConfigError(
                f"The environment variable {variable} names no key{_did_you_mean(name, known)}: "
                "expected MDD_SECTION__KEY, like MDD_SWEEP__STEP_UM."
            )
    return given


def _from_mapping(mapping: Mapping[str, object], source: str) -> dict[Path_, Value]:
    given = {}
    for name, value in mapping.items():
        path = tuple(name.split("."))
        if isinstance(value, str) and path in keys():
            value = _parsed(value, keys()[path])
        elif isinstance(value, Path):
            value = str(_expanded(value))
        elif isinstance(value, list | tuple):
            value = [str(_expanded(v)) if isinstance(v, Path) else v for v in value]
        given[path] = Value(path, value, source)
    return given


def _parsed(text: str, key: Key) -> Any:
    """Return `text` from outside of a file as the TOML value that `key` wants, or as it is."""
    if key.optional and text.strip().lower() == "none":
        return None
    if key.is_path:
        return str(_expanded(text))
    if key.is_text:
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _nested(given: Mapping[Path_, Value]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, value in given.items():
        table = root
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = value.value
    return root


def _misplaced(given: Mapping[Path_, Value]) -> Iterator[str]:
    """Say what is wrong with each path that is no key."""
    for path, value in given.items():
        if path in keys():
            continue
        name = ".".join(path)
        if path in tables():
            yield f"{value.origin}: {name} is a table, [{name}], and takes no value of its own."
        elif isinstance(value.value, dict):
            known = [".".join(table) for table in tables() if table]
            yield f"{value.origin}: there is no table [{name}]{_did_you_mean(name, known)}."
        else:
            yield f"{value.origin}: unknown key {name}{_closest_key(path)}."


def _closest_key(path: Path_) -> str:
    """Return " (did you mean ...?)" for a key that does not exist, or ""."""
    name = path[-1]
    here = [key.path[-1] for key in keys().values() if key.path[:-1] == path[:-1]]
    # A key with another unit, or without one: step_nm, step_mm, step.
    stem = re.sub(r"_(nm|um|mm|us|ms|s|min|hz|khz|kb|mb|gb|bytes|pixels|px)$", "", name)
    for other in here:
        unit = unit_of(other)
        if (
            unit
            and other != name
            and other.startswith(stem + "_")
            and other.count("_") == stem.count("_") + 1
        ):
            return f" (did you mean {other}, in {unit}?)"
    if suggestion := _did_you_mean(name, here):
        return suggestion
    elsewhere = [key.name for key in keys().values() if key.path[-1] == name]
    if elsewhere:
        return f" (did you mean {' or '.join(elsewhere)}?)"
    return _did_you_mean(".".join(path), [key.name for key in keys().values()])


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _problem(given: Mapping[Path_, Value], loc: tuple[int | str, ...], message: str, kind: str) -> str:
    """Return the sentence for one of pydantic's errors at `loc`."""
    message = message.removeprefix("Value error, ")
    path: Path_ = ()
    for part in loc:
        if path in keys():
            break
        path = (*path, str(part))
    if path not in keys():  # a rule about several keys: name the place of the last one that it mentions
        inside = [p for p in given if p[: len(path)] == path]
        named = [p for p in inside if p[-1] in message] or inside
        place = f"{given[named[-1]].origin}: " if named else ""
        return f"{place}{'.'.join(path)}{': ' if path else ''}{message}."
    key, value = keys()[path], given[path]
    shown = _shown(value.value)
    if kind == "value_error":
        return f"{value.origin}: {key.name}: {message}, not {shown}."
    extra = ""
    if key.choices and isinstance(value.value, str):
        extra = _did_you_mean(value.value, key.choices)
    elif isinstance(value.value, str) and not key.is_text and re.match(r"[-+.\d]", value.value):
        extra = " (without quotes, and without its unit)" if key.unit else " (without quotes)"
    meaning = key.description.removesuffix(f", {key.unit}")
    return f"{value.origin}: {key.name} should be {key.expected} ({meaning}), not {shown}{extra}."


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _check_paths(config: Config, given: Mapping[Path_, Value]) -> None:
    for path in INPUT_PATHS:
        file = getattr(getattr(config, path[0]), path[1])
        if file is not None and not file.exists():
            raise MissingFileError(
                f"{given[path].origin}: {'.'.join(path)} names {file}, which does not exist."
            )


def _check_geometry(config: Config, given: Mapping[Path_, Value]) -> None:
    """Refuse a slab that does not fit into the volume, where this side decides about both."""
    sweep, volume = config.sweep, config.volume
    if config.acquisition.driver == "none" or sweep.axial_profile is not None:
        return
    step_um = sweep.resolved_step_um
    depth_um = volume.shape_z * volume.voxel_z_um
    try:
        check_sense(config)
        if depth_um > PROJECTIONS_MOST * step_um:
            raise GeometryError(
                f"A step of {step_um:g} µm over {depth_um:g} µm makes more than {PROJECTIONS_MOST} "
                "projections of a sweep: check its unit."
            )
        sweep_positions(
            length_um=sweep.length_um,
            step_um=step_um,
            z0_um=volume.z0_um,
            voxel_z_um=volume.voxel_z_um,
            shape_z=volume.shape_z,
            offset_um=0.5 * step_um if sweep.alternate_offset else 0.0,
        )
    except GeometryError as error:
        places = {value.origin for path, value in given.items() if path[0] in ("sweep", "volume")}
        raise ConfigError(f"{'; '.join(sorted(places))}: {error}" if places else str(error)) from None
