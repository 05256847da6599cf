"""The page itself: HTML around facts, pictures and charts, with nothing fetched from anywhere.

Every text from the file goes through `escape`, and the page's content policy allows no script but the one
whose checksum it states, so that a file cannot make the page do anything. Without scripts all is readable
still: the slider falls away. Pure but for reading the run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion import __version__
from microdiffusion.config import toml_value
from microdiffusion.daemon.report.charts import Line, chart
from microdiffusion.daemon.report.data import Channel, channels_of, positions_of
from microdiffusion.daemon.report.pictures import data_uri, shown, window
from microdiffusion.daemon.status import size
from microdiffusion.optics import AxialProfile
from microdiffusion.runfile import Run, open_run
from microdiffusion.text import count_noun

SESSIONS_MOST = 24
"""Positions and channels that are shown in full; of further ones the counts."""
EVENTS_MOST = 300
CONFIGURATION_MOST = 200_000


def write_page(path: Path, *, title: str | None = None) -> str:
    """Return a run's report as an HTML page.

    Raises
    ------
    UserError
        There is no such run, or the file is damaged.
    """
    positions = positions_of(path)
    with open_run(path) as run:
        head, sections = _head(run, path, title), [_summary(run, path, len(positions))]
        tail = [_events(run), _ledger(run), _configuration(run), _versions(run)]
    shown_sessions = 0
    for number, position in enumerate(positions):
        if shown_sessions >= SESSIONS_MOST:
            left = count_noun(len(positions) - number, "further position is", "further positions are")
            sections.append(f"<p>{left} not shown.</p>")
            break
        channels = channels_of(path, number)
        for channel in channels:
            name = _session_name(position, channel.name, len(positions), len(channels))
            sections.append(_session(channel, name, f"s{shown_sessions}"))
            shown_sessions += 1
    script = _resource("page.js")
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'; script-src 'sha256-{policy}'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{_safe(title or path.stem)}</title>'
        f"<style>{_resource('page.css')}</style></head><body><main>"
        + "".join([head, *sections, *tail])
        + f"<footer>mdd {_safe(__version__)}, {_safe(_both_times(time.time()))}</footer></main>"
        f"<script>{script}</script></body></html>\n"
    )


def _resource(name: str) -> str:
    return files("microdiffusion.daemon.report").joinpath(name).read_text("utf-8")


def _safe(text: object) -> str:
    """Return a text as HTML, control characters and halves of characters replaced."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text))
    return escape(plain.encode("utf-8", "replace").decode("utf-8"), quote=True)


def _both_times(epoch_s: float) -> str:
    local = datetime.fromtimestamp(epoch_s).astimezone()
    utc = datetime.fromtimestamp(epoch_s, UTC)
    return f"{local:%Y-%m-%d %H:%M:%S} local time (UTC{local:%z}), {utc:%Y-%m-%d %H:%M:%S} UTC"


def _created(run: Run) -> str:
    text = run.created_utc
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return _both_times((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError, OSError):  # no date, or one that this system cannot reckon with
        return str(text) or "not stated"


def _duration(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "not known"
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min {left:02d} s" if hours else f"{minutes} min {left:02d} s"


def _head(run: Run, path: Path, title: str | None) -> str:
    state = (
        '<span class="badge good">closed in order</span>'
        if run.closed
        else '<span class="badge warn">still running, or cut off</span>'
    )
    return (
        f"<header><h1>{_safe(title or run.header.name)} {state}</h1>"
        f'<p class="sub">{_safe(path.name)} · run {_safe(run.header.run_id)}</p></header>'
    )


def _rows(pairs: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{_safe(name)}</th><td>{_safe(value)}</td></tr>" for name, value in pairs)
    return f'<table class="facts">{cells}</table>'


def _summary(run: Run, path: Path, positions: int) -> str:
    header = run.header
    times = run.times
    finite = times[np.isfinite(times)]
    taken = sum(file.stat().st_size for file in run.paths)
    voxel = " × ".join(f"{edge:g}" for edge in run.voxel_size_um)
    z, y, x = header.shape
    sides = " × ".join(f"{n * edge:.4g}" for n, edge in zip((z, y, x), run.voxel_size_um, strict=True))
    written = int(np.count_nonzero(run.status == 1))
    camera = header.camera
    gain = "not known" if camera.gain is None else f"{camera.gain:g} counts per photon"
    cards = [
        ("volumes", str(written) + (" (position 0)" if positions > 1 else "")),
        ("frames received", f"{run.ledger.received}"),
        ("frames missing", f"{run.ledger.missing}"),
        ("duration", _duration(float(finite.max())) if finite.size else "no frame yet"),
    ]
    shown_cards = "".join(
        f'<div class="card"><b>{_safe(value)}</b><span>{_safe(name)}</span></div>' for name, value in cards
    )
    facts = [
        ("begun", _created(run)),
        ("microscope", header.source or "not stated"),
        ("volume", f"{z} × {y} × {x} voxels (z, y, x) of {voxel} µm: {sides} µm"),
        (
            "beam",
            _beam(header.profile),
        ),
        ("camera", f"offset {camera.offset:g} counts, gain {gain}, read noise {camera.read_noise:g} counts"),
        ("channels", ", ".join(header.channels)),
        (
            "positions",
            "one"
            if positions == 1
            else f"{positions}: {', '.join(header.positions[:40])}" + (" ..." if positions > 40 else ""),
        ),
        ("planned", "until it was stopped" if header.sweeps is None else count_noun(header.sweeps, "sweep")),
        ("file", f"{path.name}, {size(taken)}"),
    ]
    return f'<section><div class="cards">{shown_cards}</div>{_rows(facts)}</section>'


def _beam(profile: AxialProfile) -> str:
    if profile.weights.size == 1:
        return f"box of {profile.length_um:.4g} µm"
    return f"profile of {profile.weights.size} values over {profile.length_um:.4g} µm"


def _session_name(position: str, channel: str, positions: int, channels: int) -> str:
    parts = [f"position {position}"] if positions > 1 else []
    parts += [f"channel {channel}"] if channels > 1 else []
    return ", ".join(parts)


def _session(channel: Channel, name: str, key: str) -> str:
    heading = f"<h2>{_safe(name)}</h2>" if name else ""
    parts = (heading, _images(channel, key), _charts(channel), _counts(channel), _gaps(channel))
    return f"<section>{''.join(parts)}</section>"


def _images(channel: Channel, key: str) -> str:
    if not channel.pictures:
        return '<p class="none">No volume was written.</p>' + _failures(channel)
    limits = window([picture for _, _, triple in channel.pictures for picture in triple])
    count = len(channel.pictures)
    chosen = sorted({0, count // 2, count - 1})
    blocks = "".join(_block(*channel.pictures[number], limits) for number in chosen)
    strip = ""
    if count > 1:
        frames = "".join(
            f'<img alt="time point {t}" title="time point {t}" data-label="{_safe(_label(t, time_s))}" '
            f'src="{data_uri(shown(triple[0], limits))}">'
            for t, time_s, triple in channel.pictures
        )
        strip = (
            f'<h3>Over time</h3><div class="player" id="{key}"><div class="stage"><img alt="">'
            f'<div><input type="range" min="0" max="{count - 1}" value="0" aria-label="time point">'
            f'<output></output></div></div><div class="strip">{frames}</div></div>'
        )
    low, high = limits
    note = f"Maximum projections; black {low:.4g}, white {high:.4g} counts, the same in all pictures."
    pictures = f'<h3>The volume</h3><div class="mips">{blocks}</div>{strip}<p class="note">{note}</p>'
    return pictures + _failures(channel)


def _label(t: int, time_s: float) -> str:
    return f"time point {t}" + (f", {time_s:.1f} s" if np.isfinite(time_s) else "")


def _block(t: int, time_s: float, triple: Any, limits: tuple[float, float]) -> str:
    xy, xz, yz = (data_uri(shown(picture, limits)) for picture in triple)
    (rows, columns), (depth, _), _ = (picture.shape for picture in triple)
    style = f"grid-template-columns:{columns}fr {depth}fr;grid-template-rows:{rows}fr {depth}fr"
    style += f";aspect-ratio:{columns + depth}/{rows + depth}"
    return (
        f'<figure class="mip"><div class="views" style="{style}">'
        f'<img alt="xy projection" src="{xy}"><img alt="yz projection" src="{yz}">'
        f'<img alt="xz projection" src="{xz}"></div>'
        f"<figcaption>{_safe(_label(t, time_s))}</figcaption></figure>"
    )


def _failures(channel: Channel) -> str:
    if not channel.failures:
        return ""
    items = "".join(f"<li>{_safe(text)}</li>" for text in channel.failures)
    return f'<div class="warning"><b>Volumes that could not be read</b><ul>{items}</ul></div>'


def _charts(channel: Channel) -> str:
    if not channel.written:
        return ""
    x = channel.time_points.astype(np.float64)
    get = channel.figures
    quality = [
        Line(
            "held-out error",
            x[np.isfinite(get["held_out_error"])],
            get["held_out_error"][np.isfinite(get["held_out_error"])],
        ),
        Line("residual", x, get["residual"]),
    ]
    pace = [
        Line("last frame to readable volume", x, get["latency_s"]),
        Line("in the engine", x, get["seconds/total"]),
    ]
    return (
        '<div class="charts">'
        + chart(
            "Quality: 1 is as good as the noise allows",
            quality,
            x_label="time point",
            y_label="in units of the noise",
            reference=1.0,
        )
        + chart("Latency", pace, x_label="time point", y_label="s")
        + "</div>"
    )


def _counts(channel: Channel) -> str:
    pairs = []
    labels = {"served": "whose answer", "effort": "effort", "runtime": "runtime"}
    for dataset, label in labels.items():
        if channel.counts[dataset]:
            pairs.append((label, ", ".join(f"{name} {number}" for name, number in channel.counts[dataset])))
    latency = channel.figures["latency_s"][np.isfinite(channel.figures["latency_s"])]
    if latency.size:
        p50, p95 = np.percentile(latency, (50, 95))
        pairs.append(
            ("latency", f"median {p50:.3g} s, 95 % within {p95:.3g} s, longest {latency.max():.3g} s")
        )
    held = channel.figures["held_out_error"][np.isfinite(channel.figures["held_out_error"])]
    if held.size:
        count = count_noun(held.size, "projection")
        pairs.append(("held-out error", f"median {np.median(held):.3g} times the noise, from {count}"))
    return _rows(pairs) if pairs else ""


def _gaps(channel: Channel) -> str:
    if not channel.gap_count:
        return '<p class="note">No gaps.</p>' if channel.time_points.size else ""
    rows = "".join(
        f"<tr><td>{t}</td><td>{_safe(status)}</td><td>{_safe(reason or 'not stated')}</td></tr>"
        for t, status, reason in channel.gaps
    )
    more = (
        f"<p>{channel.gap_count - len(channel.gaps)} more.</p>"
        if channel.gap_count > len(channel.gaps)
        else ""
    )
    count = count_noun(channel.gap_count, "time point")
    return (
        f"<h3>Gaps: {count} without a volume</h3><table><tr><th>time point</th>"
        f"<th>status</th><th>reason</th></tr>{rows}</table>{more}"
    )


def _events(run: Run) -> str:
    events = run.events
    if not events:
        return '<section><h2>Events</h2><p class="none">None.</p></section>'
    rows = "".join(
        f"<tr><td>{event.time_s:.1f}</td><td>{_safe(event.kind)}</td><td>{_safe(event.text)}</td></tr>"
        for event in events[-EVENTS_MOST:]
    )
    count = count_noun(len(events), "event")
    more = f", the last {EVENTS_MOST}" if len(events) > EVENTS_MOST else ""
    return (
        f"<section><h2>Events</h2><details {'open' if len(events) <= 20 else ''}><summary>{count}{more}"
        f"</summary><table><tr><th>s since start</th><th>kind</th><th>what</th></tr>{rows}</table></details>"
        "</section>"
    )


def _ledger(run: Run) -> str:
    ledger = run.ledger
    names = {
        "announced": "taken by the camera" + ("" if ledger.announced_known else " (at least)"),
        "received": "received",
        "missing": "missing",
        "dropped_by_sender": "of these, dropped by the sender: no room",
        "unsent": "of these, not sent before it ended",
        "damaged": "of these, damaged on the line",
        "on_the_line": "of these, lost on the line, or on their way",
        "duplicates": "came again, counted once",
        "refused": "malformed messages",
        "unplaced": "received, but without a place in the file",
    }
    pairs = [(label, str(getattr(ledger, name))) for name, label in names.items()]
    return f"<section><h2>Where the frames went</h2>{_rows(pairs)}</section>"


def _configuration(run: Run) -> str:
    lines: list[str] = []
    _as_toml(run.config, (), lines)
    text = "\n".join(lines)[:CONFIGURATION_MOST].strip()
    folded = f"<details><summary>as it was used</summary><pre>{_safe(text)}</pre></details>"
    return f"<section><h2>Configuration</h2>{folded}</section>"


def _as_toml(table: dict[str, Any], above: tuple[str, ...], lines: list[str]) -> None:
    if above and any(not isinstance(value, dict) for value in table.values()):
        lines += ["", f"[{'.'.join(above)}]"]
    for name, value in table.items():
        if value is not None and not isinstance(value, dict):
            try:
                shown_value = toml_value(value)
            except TypeError:
                shown_value = json.dumps(value, default=str)
            lines.append(f"{name} = {shown_value}")
    for name, value in table.items():
        if isinstance(value, dict):
            _as_toml(value, (*above, name), lines)


def _versions(run: Run) -> str:
    pairs = [(str(name), str(value)[:2000]) for name, value in sorted(run.provenance.items())]
    if not pairs:
        return ""
    folded = f"<details><summary>software and weights</summary>{_rows(pairs)}</details>"
    return f"<section><h2>Versions</h2>{folded}</section>"
