"""Pages that need nothing but themselves: one HTML file with its style and its pictures, for screens and for paper."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from palaestra.runs.errors import RunError
from palaestra.runs.files import write_file

_KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def environment(package: str) -> Environment:
    """Return the Jinja templates in the folder `pages` of a package: values are escaped, unknown names an error."""
    return Environment(
        loader=PackageLoader(package, "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(title: str, body: str) -> str:
    """Return a whole HTML page: it loads nothing, runs no script, and is light or dark as the reader's machine is.

    Tables that may be wide go into `<div class="wide">`, pictures into `<figure>`, digits into cells of class `number`.

    Args:
        title: plain text; escaped here.
        body: HTML, such as a template gives; it is not escaped.
    """
    return environment("palaestra.runs").get_template("frame.html").render(title=title, body=Markup(body))


def picture(content: bytes, suffix: str, alt: str) -> Markup:
    """Return an `<img>` that holds the picture itself.

    Args:
        content: of the file.
        suffix: ".svg" or ".png".
        alt: what it shows, for those who do not see it.
    """
    data = base64.b64encode(content).decode()
    return Markup('<img alt="{}" src="data:{};base64,{}">').format(alt, _KINDS[suffix], data)


def write_page(path: Path, title: str, body: str) -> Path:
    """Write a `page` to a file and return its path.

    Raises:
        RunError: the file is no .html, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise RunError(path, f"{path.suffix or 'no suffix'!r} is no format of a page", "use .html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, [page(title, body).encode()])
    except OSError as error:
        raise RunError(path, f"cannot be written ({error.strerror})", "choose another file") from error
    return path
