"""The generated sections of docs/performance.md, between markers."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
PICTURE = PAGE.with_suffix(".svg")


def put(text: str, name: str, content: str) -> str:
    """A page with what stands between the markers of that name replaced; ValueError without them."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no markers of {name!r} in the page")
    return pattern.sub(lambda _: begin + content + end, text)


def write(sections: dict[str, str], picture: str) -> None:
    """Bring the page up to date."""
    text = PAGE.read_text(encoding="utf-8")
    for name, content in sections.items():
        text = put(text, name, content)
    PAGE.write_text(text, encoding="utf-8")
    PICTURE.write_text(picture, encoding="utf-8")
