"""What a search found as one HTML page that needs nothing else: its picture is inside."""

from __future__ import annotations

import base64

from fxcompress.pages import environment
from fxcompress.searching.found import Found


def render(found: Found, picture: bytes) -> str:
    """The whole page, with a PNG. What comes from the user is escaped."""
    return (
        environment()
        .get_template("search.html.j2")
        .render(
            found=found,
            picture=base64.b64encode(picture).decode(),
            recipes=[found.recipe(i) for i in range(len(found.best))],
        )
    )
