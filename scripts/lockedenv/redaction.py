"""Hides secrets in whatever is printed or written: one function, one table of
what a secret looks like.

Each pattern of the table replaces a secret by `***` and leaves its surroundings, so that the line
can still be read. A text that was redacted is not changed by being redacted again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Callable

HIDDEN = "***"

# Words that make the value of a setting a secret. "tokenizers" and "password_policy" are
# other words than "token".
_SECRET_WORD = (
    r"(?:token|passw(?:or)?d|passphrase|secret|credentials?|authorization"
    r"|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|signature)"
)
_SECRET_NAME = rf"[\w.-]*?{_SECRET_WORD}s?(?![A-Za-z])[\w.-]*"
# PGPASS=, MYSQL_PASS=; not "pass: 5 checks".
_PASS_NAME = r"\w*PASS|\w*_pass"
_VALUE = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'})\]]+)"


@dataclass(frozen=True)
class SecretShape:
    """What one kind of secret looks like.

    `pattern` matches it; `shown` is what is printed instead.
    """

    kind: str
    pattern: re.Pattern[str]
    shown: str | Callable[[re.Match[str]], str] = HIDDEN


def _shape(
    kind: str, pattern: str, shown: str | Callable[[re.Match[str]], str] = HIDDEN
) -> SecretShape:
    return SecretShape(kind, re.compile(pattern), shown)


def _hide_channel_tokens(match: re.Match[str]) -> str:
    """Hides what follows /t/ as conda's channels have it; not the path of a folder named t here."""
    shown, *others = match[0].split("/t/")
    for rest in others:
        folder = shown[max(0, shown.find("/")) :] + "/t"
        if not os.path.isdir(folder):
            rest = re.sub(r"^[^/]+", HIDDEN, rest)
        shown += f"/t/{rest}"
    return shown


def _hide_parameters(match: re.Match[str]) -> str:
    """Hides the values of an address' parameters, but for hashes, subdirectories and egg names."""
    public = r"(?:sha256|sha512|md5|egg|subdirectory)="
    return re.sub(
        rf"([#;&])(?!{public})([\w.-]+=)(?!=)[^#;&]+", rf"\1\2{HIDDEN}", match[0]
    )


SHAPES = (
    _shape(
        "private key",
        r"(?s)-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    ),
    # Tokens that are known by how they begin.
    _shape("GitHub fine-grained token", r"\bgithub_pat_\w{8,}"),
    _shape("GitHub token", r"\bgh[oprsu]_\w{8,}"),
    _shape("GitLab token", r"\bgl(?:pat|dt|rt|cbt|ptt|ft|soat)-[\w-]{8,}"),
    # hf_transfer and hf_xet are packages.
    _shape("Hugging Face token", r"\bhf_(?!transfer\b|xet\b)\w{8,}"),
    _shape("OpenAI or Anthropic key", r"\bsk-(?=[\w-]*[\dA-Z])[\w-]{8,}"),
    _shape("AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}"),
    _shape("Google key", r"\bAIza[\w-]{20,}"),
    _shape("Slack token", r"\bx(?:ox[a-z]|app)-[\w-]{8,}"),
    _shape("PyPI token", r"\bpypi-[A-Za-z0-9_-]{16,}"),
    _shape("npm token", r"\bnpm_[A-Za-z0-9]{16,}"),
    _shape("RunPod key", r"\brpa_[A-Za-z0-9]{16,}"),
    _shape("JSON web token", r"\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?"),
    # Headers: all that follows, to the end of the line or of the quoted word.
    _shape(
        "header",
        r"(?i)((?<![\w-])(?:set-cookie2?|cookie|(?:proxy-)?authorization|x-auth-token|x-api-key"
        r"|private-token|job-token)\"?'?\s*[:=]\s*[\"']?)[^\r\n\"']+",
        rf"\1{HIDDEN}",
    ),
    # Addresses.
    _shape("token of a conda channel", r"\S*/t/\S+", _hide_channel_tokens),
    # Greedy: a password may hold an @ itself.
    _shape("user and password of an address", r"(?<=://)[^/\s\"']*@", f"{HIDDEN}@"),
    _shape(
        "user:password@host without a scheme",
        r"(?<![\w/:.@-])[\w.+-]+:[^\s/:@\"']+@(?=(?:[\w-]+\.)+[a-z]{2,}\b|localhost\b|\d+\.\d+\.)",
        f"{HIDDEN}@",
    ),
    _shape("query of an address", r"(://[^\s?'\"]+)\?[^\s'\"]+", rf"\1?{HIDDEN}"),
    _shape(
        "parameter of an address",
        r"(?:://|\b[\w-]+\.[\w.-]+/)[^\s'\"#;&]*[#;&][^\s'\"]+",
        _hide_parameters,
    ),
    # Settings: NAME=value, "name": "value", --name value.
    _shape(
        "secret setting",
        rf"(?i)((?<![\w.-])-*{_SECRET_NAME}[\"']?\s*(?::|=(?!=))\s*)"
        rf"((?:bearer|basic|token)\s+)?{_VALUE}",
        rf"\1\2{HIDDEN}",
    ),
    _shape(
        "password setting", rf"((?<!\w)(?:{_PASS_NAME})=(?!=)){_VALUE}", rf"\1{HIDDEN}"
    ),
    _shape(
        "secret option",
        rf"(?i)((?<!\S)--[\w-]*?{_SECRET_WORD}s?(?![A-Za-z])[\w-]*\s+)(?!-){_VALUE}",
        rf"\1{HIDDEN}",
    ),
)


def redact(text: str) -> str:
    """Gives the text with every secret that the table knows replaced by `***`."""
    for shape in SHAPES:
        text = shape.pattern.sub(shape.shown, text)
    return text


def redact_document(value: Any) -> Any:
    """Gives a document of JSON (dicts, lists, strings, numbers) with the
    secrets in its strings hidden.

    A string is hidden wholly where its key names a secret.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redact_entry(key, entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_document(entry) for entry in value]
    return value


def _redact_entry(key: object, entry: Any) -> Any:
    names_a_secret = re.fullmatch(rf"(?i){_SECRET_NAME}|{_PASS_NAME}", str(key))
    if names_a_secret and isinstance(entry, str) and entry:
        return HIDDEN
    return redact_document(entry)
