"""The findings as a page for people, and as one JSON object for a bug report."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from microdiffusion import __version__
from microdiffusion.daemon.doctor.finding import Findings, Severity
from microdiffusion.daemon.system import package_versions
from microdiffusion.text import count_noun

STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.FAILURE: "bold red"}


def page(findings: Findings) -> Group:
    """Return the findings, grouped by theme, with a sentence at the end."""
    blocks: list[Table | Text] = []
    for theme, group in groupby(findings, key=lambda one: one[0].theme):
        table = Table.grid(padding=(0, 1))
        table.add_column(width=9)
        table.add_column(width=19)
        table.add_column()
        for check, finding in group:
            text = Text(finding.text)
            if finding.fix:
                text.append(f"\n-> {finding.fix}", "bold")
            table.add_row(Text(f"  {finding.level}", STYLES[finding.level]), check.name, text)
        blocks += [Text(theme, "bold"), table, Text()]
    return Group(*blocks, summary(findings))


def summary(findings: Findings) -> str:
    """Return the sentence at the end of the page."""
    levels = [finding.level for _, finding in findings]
    failures, warnings = levels.count(Severity.FAILURE), levels.count(Severity.WARNING)
    also = count_noun(warnings, "warning") if warnings else "no warnings"
    if failures:
        return f"{count_noun(failures, 'failure')}, {also}: fix the failures first, they would stop a run."
    return f"No failures, {also}: a run can start." if warnings else "Everything is fine."


def report(findings: Findings, configuration: str) -> dict[str, Any]:
    """Return versions and findings for a bug report: no keys, and the home folder as ~."""
    home = os.path.expanduser("~")  # pathlib's raises where there is none

    def tidy(text: str) -> str:
        return text.replace(home, "~") if len(home) > 1 else text

    levels = [finding.level for _, finding in findings]
    return {
        "mdd": __version__,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "configuration": tidy(configuration),
        "result": str(max(levels, key=list(Severity).index, default=Severity.OK)),
        "checks": [
            {"theme": check.theme, "name": check.name, "level": str(finding.level)}
            | {"text": tidy(finding.text), "fix": tidy(finding.fix)}
            for check, finding in findings
        ],
    }
