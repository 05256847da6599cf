"""What the site needs besides the pages: the files outside of docs/ that they link to.

The pages link to the repository's own files (results of benchmarks, the weights' card, the example
programs), as they lie. Here these become files of the site, and links to them are turned round. Called by
mkdocs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"engines/weights/README.md": "weights.md", "README.md": "index.md"}
WEIGHTS = {"weights.md": "README.md", "slab.md": "slab.md"}
LINK = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the results and the card of the weights."""
    for uri, name in WEIGHTS.items():
        content = (ROOT / "engines" / "weights" / name).read_text("utf-8")
        files.append(File.generated(config, uri, content=content))
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        uri = f"benchmarks/results/{path.name}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave docs/ to where their files lie on the site."""
    depth = page.file.src_uri.count("/")

    def turned(link: re.Match[str]) -> str:
        if link["up"].count("../") != depth + 1:
            return link[0]
        path = OUTSIDE.get(link["path"], link["path"])
        return f"]({'../' * depth}{path}{link['anchor'] or ''})"

    if page.file.src_uri in WEIGHTS:  # they lie two folders down in the repository
        return re.sub(r"\]\(\.\./\.\./(?:docs/)?", "](", markdown).replace("](README.md", "](weights.md")
    return LINK.sub(turned, markdown)
