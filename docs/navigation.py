"""A hook of MkDocs: the generated pages join the navigation, so that mkdocs.yml need not list them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palaestra.expression import catalogue

REFERENCE = Path(__file__).parent / "reference"


def on_config(config: Any) -> Any:
    """Append the section `Reference`: its index, then the pages in the order of the catalogue."""
    if not (REFERENCE / "index.md").exists():
        raise SystemExit("docs/reference is missing: run `python docs/generate.py` first, or `make docs`")
    sections = {
        title: [f"reference/{slug}.md" for slug in catalogue(group) if (REFERENCE / f"{slug}.md").exists()]
        for title, group in {"Bases": "algorithms", "Methods and variants": "methods"}.items()
    }
    config.nav.append(
        {
            "Reference": [
                "reference/index.md",
                "reference/papers.md",
                *({title: pages} for title, pages in sections.items()),
            ]
        }
    )
    return config
