"""The page: what the template `page.html.j2` shows of a run, in its order.

Every text from the file is escaped by the template, and the page's content policy allows no script but the
one whose checksum it states, so that a file cannot make the page do anything. Without scripts all is still
readable: the slider falls away. Pure but for reading the run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from microdiffusion import __version__
from microdiffusion.daemon.report.charts import Chart, ChartLine, chart
from microdiffusion.daemon.report.data import Channel, Triple, channels_of, positions_of
from microdiffusion.daemon.report.pictures import data_uri, shown, window
from microdiffusion.daemon.status import duration, size
from microdiffusion.optics import AxialProfile
from microdiffusion.runfile import Run, Status, lacking_sentence, open_run
from microdiffusion.text import IN_WORDS, USUAL_ERROR, count_noun, in_noise

SESSIONS_MOST = 24
"""Positions and channels that are shown in full; further ones are counted."""
EVENTS_MOST = 300
ALARMS_MOST = 10
CONFIGURATION_MOST = 200_000
POSITIONS_MOST = 40


def write_page(path: Path, *, title: str | None = None) -> str:
    """Return a run's report as an HTML page.

    Raises
    ------
    UserError
        There is no such run, or the file is damaged.
    """
    positions = positions_of(path)
    with open_run(path, missing="ignore") as run:
        content = {**_facts(run, path, positions), **_records(run)}
    sessions: list[dict[str, object]] = []
    not_shown = ""
    for number, position in enumerate(positions):
        if len(sessions) >= SESSIONS_MOST:
            not_shown = count_noun(len(positions) - number, "further position is", "further positions are")
            break
        channels = channels_of(path, number)
        for channel in channels:
            parts = [f"position {position}"] if len(positions) > 1 else []
            parts += [f"channel {channel.name}"] if len(channels) > 1 else []
            sessions.append(_session(channel, ", ".join(parts), f"s{len(sessions)}"))
    script = _resource("page.js")
    return template().render(
        content,
        title=title,
        sessions=sessions,
        not_shown=not_shown,
        style=Markup(_resource("page.css")),  # noqa: S704 our own
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        version=__version__,
        made=_both_times(time.time()),
    )


def template() -> jinja2.Template:
    """Return the template; it escapes every text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_printable, trim_blocks=True
    )
    return environment.from_string(_resource("page.html.j2"))


def _printable(value: object) -> object:
    """Return a text with control characters and halves of characters replaced."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    plain = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value)
    return plain.encode("utf-8", "replace").decode("utf-8")


def _resource(name: str) -> str:
    return files("microdiffusion.daemon.report").joinpath(name).read_text("utf-8")


def _facts(run: Run, path: Path, positions: tuple[str, ...]) -> dict[str, object]:
    header, ledger, camera = run.header, run.ledger, run.header.camera
    finite = run.times[np.isfinite(run.times)]
    z, y, x = header.shape
    voxel = " × ".join(f"{edge:g}" for edge in run.voxel_size_um)
    sides = " × ".join(f"{n * edge:.4g}" for n, edge in zip((z, y, x), run.voxel_size_um, strict=True))
    gain = "not known" if camera.gain is None else f"{camera.gain:g} counts per photon"
    written = str(np.count_nonzero(run.status == Status.WRITTEN))
    names = ", ".join(positions[:POSITIONS_MOST]) + (" ..." if len(positions) > POSITIONS_MOST else "")
    return {
        "name": header.name,
        "stem": path.stem,
        "file": path.name,
        "run_id": header.run_id,
        "closed": run.closed,
        "lacking": lacking_sentence(path, missing) if (missing := run.missing_files) else "",
        "cards": [
            ("volumes", written + (" (position 0)" if len(positions) > 1 else "")),
            ("frames received", str(ledger.received)),
            ("frames missing", str(ledger.missing)),
            ("duration", duration(float(finite.max())) if finite.size else "no frame yet"),
        ],
        "facts": [
            ("started", _created(run)),
            ("microscope", header.source or "not stated"),
            ("volume", f"{z} × {y} × {x} voxels (z, y, x) of {voxel} µm: {sides} µm"),
            ("beam", _beam(header.profile)),
            (
                "camera",
                f"offset {camera.offset:g} counts, gain {gain}, read noise {camera.read_noise:g} counts",
            ),
            ("channels", ", ".join(header.channels)),
            ("positions", "one" if len(positions) == 1 else f"{len(positions)}: {names}"),
            ("planned", "until stopped" if header.sweeps is None else count_noun(header.sweeps, "sweep")),
            ("file", f"{path.name}, {size(run.nbytes)}"),
            *(("alarm", text) for text in _alarms(run)),
        ],
    }


def _alarms(run: Run) -> list[str]:
    """Return the first alarms about the quality of sweeps."""
    return [event.text for event in run.events if event.kind == "quality"][:ALARMS_MOST]


def _records(run: Run) -> dict[str, object]:
    ledger, events = run.ledger, run.events
    at_least = "" if ledger.announced_known else " (at least)"
    last = f", the last {EVENTS_MOST}" if len(events) > EVENTS_MOST else ""
    return {
        "events": events[-EVENTS_MOST:],
        "event_count": count_noun(len(events), "event") + last,
        "ledger": [
            ("taken by the camera" + at_least, ledger.announced),
            ("received", ledger.received),
            ("missing", ledger.missing),
            ("of these, dropped by the sender: no room", ledger.dropped_by_sender),
            ("of these, not sent before it ended", ledger.unsent),
            ("of these, damaged on the line", ledger.damaged),
            ("of these, lost on the line, or on their way", ledger.on_the_line),
            ("received again, counted once", ledger.duplicates),
            ("malformed messages", ledger.refused),
            ("received, but without a place in the file", ledger.unplaced),
        ],
        "configuration": "\n".join(_settings(run.config))[:CONFIGURATION_MOST],
        "provenance": [(str(name), str(value)[:2000]) for name, value in sorted(run.provenance.items())],
    }


def _session(channel: Channel, name: str, key: str) -> dict[str, object]:
    limits = window([image for _, _, triple in channel.pictures for image in triple])
    pictures = [_picture(t, time_s, triple, limits) for t, time_s, triple in channel.pictures]
    count = len(pictures)
    return {
        "name": name,
        "key": key,
        "pictures": pictures,
        "chosen": [pictures[number] for number in sorted({0, count // 2, count - 1})] if pictures else [],
        "black": f"{limits[0]:.4g}",
        "white": f"{limits[1]:.4g}",
        "failures": channel.failures,
        "charts": _charts(channel) if channel.written else [],
        "figures": _figures(channel),
        "gaps": channel.gaps,
        "gap_count": count_noun(channel.gap_count, "time point"),
        "more_gaps": channel.gap_count - len(channel.gaps),
        "has_time_points": channel.time_points.size > 0,
    }


def _picture(t: int, time_s: float, triple: Triple, limits: tuple[float, float]) -> dict[str, str]:
    xy, xz, yz = (data_uri(shown(image, limits)) for image in triple)
    (rows, columns), (depth, _), _ = (image.shape for image in triple)
    grid = f"grid-template-columns:{columns}fr {depth}fr;grid-template-rows:{rows}fr {depth}fr"
    return {
        "name": f"time point {t}",
        "label": f"time point {t}" + (f", {time_s:.1f} s" if np.isfinite(time_s) else ""),
        "grid": f"{grid};aspect-ratio:{columns + depth}/{rows + depth}",
        "xy": xy,
        "xz": xz,
        "yz": yz,
    }


def _charts(channel: Channel) -> list[Chart]:
    x = channel.time_points.astype(np.float64)
    figures, measured = channel.figures, np.isfinite(channel.figures["held_out_error"])
    quality = [
        ChartLine("held-out error", x[measured], figures["held_out_error"][measured]),
        ChartLine("residual", x, figures["residual"]),
    ]
    pace = [
        ChartLine("last frame to readable volume", x, figures["latency_s"]),
        ChartLine("in the engine", x, figures["seconds/total"]),
    ]
    charts = [chart("Latency", pace, x_label="time point", y_label="s")]
    held_out = quality[0].y
    if held_out.size and np.median(held_out) > IN_WORDS:  # the noise is no measure of it
        return charts
    title = f"Quality: 1 is as good as the noise allows, {USUAL_ERROR} for the held-out error"
    return [
        chart(title, quality, x_label="time point", y_label="in units of the noise", reference=1.0),
        *charts,
    ]


def _figures(channel: Channel) -> list[tuple[str, str]]:
    pairs = []
    for dataset, label in (("served", "served"), ("effort", "effort"), ("runtime", "runtime")):
        if channel.counts[dataset]:
            pairs.append((label, ", ".join(f"{name} {number}" for name, number in channel.counts[dataset])))
    latency, held_out = (
        channel.figures[name][np.isfinite(channel.figures[name])] for name in ("latency_s", "held_out_error")
    )
    if latency.size:
        p50, p95 = np.percentile(latency, (50, 95))
        text = f"median {p50:.3g} s, 95 % within {p95:.3g} s, longest {latency.max():.3g} s"
        pairs.append(("latency", text))
    if held_out.size:
        count = count_noun(held_out.size, "projection")
        median = in_noise(float(np.median(held_out)))
        pairs.append(("held-out error", f"median {median} ({USUAL_ERROR}), from {count}"))
    sizes, slopes, covered = (
        channel.figures[name][np.isfinite(channel.figures[name])]
        for name in ("uncertainty_rms", "brightness_slope", "interval_coverage")
    )
    if sizes.size:
        text = f"{sizes[0]:.3g} counts at first, {sizes[-1]:.3g} at last (root mean square of a voxel)"
        pairs.append(("uncertain by", text))
    if slopes.size:
        text = f"slope of reconstructed on true {slopes[0]:.2f} at first, {slopes[-1]:.2f} at last, estimated"
        pairs.append(("brightness", text))
    if covered.size:
        count = count_noun(covered.size, "held-out projection")
        text = f"{covered.mean():.0%} of the pixels of {count}; 90 % is right"
        pairs.append(("intervals held", text))
    return pairs


def _settings(table: dict[str, Any], above: str = "") -> Iterator[str]:
    """Yield a line for each setting of a configuration."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name} = {json.dumps(value, ensure_ascii=False, default=str)}"


def _beam(profile: AxialProfile) -> str:
    if profile.weights.size == 1:
        return f"box of {profile.length_um:.4g} µm"
    return f"profile of {profile.weights.size} values over {profile.length_um:.4g} µm"


def _both_times(epoch_s: float) -> str:
    local = datetime.fromtimestamp(epoch_s).astimezone()
    utc = datetime.fromtimestamp(epoch_s, UTC)
    return f"{local:%Y-%m-%d %H:%M:%S} local time (UTC{local:%z}), {utc:%Y-%m-%d %H:%M:%S} UTC"


def _created(run: Run) -> str:
    text = run.created_utc
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return _both_times((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError, OSError):  # no date, or one that this system cannot handle
        return str(text) or "not stated"
