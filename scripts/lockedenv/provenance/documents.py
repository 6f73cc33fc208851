"""Documents from outside: read once, within limits, and only what has the shape that it must have."""

from __future__ import annotations

from lockedenv.errors import Stop


class DocumentError(Stop):
    """A manifest or certificate cannot be read or compared; the message names the file, the problem and the remedy."""
