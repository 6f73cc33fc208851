"""The options that every call of curl has."""

from __future__ import annotations

# --disable stands first: only there does curl leave the user's .curlrc unread. The configuration
# comes from standard input: an address may hold a token, and `ps` shows arguments.
CURL = (
    "curl",
    "--disable",
    "--netrc-optional",
    "--config",
    "-",
    "--location",
    "--silent",
    "--show-error",
)
