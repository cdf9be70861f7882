"""Templates made into pages. What comes from outside is escaped, with nothing invisible in it."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veto_pl.charts.picture import key
from veto_pl.charts.text import cell, number, printable
from veto_pl.core.teacher_notes import brief, texts_of
from veto_pl.exceptions import DataError
from veto_pl.pages.escaping import escape, is_long, visible
from veto_pl.storage.atomic import replacing

if TYPE_CHECKING:
    from jinja2 import Environment


SORTING = "sorting.js"
"""The one script: it sorts tables by the column whose heading is pressed. The page allows this text and no other."""


def render(template: str, **values: Any) -> str:
    """Return a page as text.

    Args:
        template: a file of `veto_pl/pages/templates`.
        values: what it shows. Text is escaped, except where a filter returns markup.
    """
    return _environment().get_template(template).render(**values)


def write_text(text: str, path: Path | str) -> Path:
    """Write UTF-8 with line feeds, all or nothing, making the folder if need be, and return the path.

    Raises:
        DataError: if it cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"`{path}` could not be written: {error.strerror}. Name another file.") from error
    return path


def anchor(heading: str) -> str:
    """Return the id of the section with that heading.

    >>> anchor("What was compared")
    'what-was-compared'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in heading.lower()).split())


@lru_cache(1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("veto_pl.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "anchor": anchor,
        "number": number,
        "cell": cell,
        "svg": Markup,  # charts are escaped where they are drawn
        "key": lambda index: Markup(key(index)),
        "code": lambda text: Markup(escape(text, keep="\n\t")),
        "token": lambda text: Markup(visible(text).replace("\n", '<span class="feed">↵</span>\n')),
        "visible": lambda text: Markup(visible(text)),
        "tab_stop": lambda text: Markup(' tabindex="0"' if is_long(text) else ""),
        "brief": brief,
        "texts_of": texts_of,
        "paragraphs": lambda text: [" ".join(part.split()) for part in text.split("\n\n") if part.strip()],
    }
    script, _, _ = environment.loader.get_source(environment, SORTING)  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"sorting": Markup(script), "sorting_hash": Markup(f"'sha256-{digest}'")}
    return environment
