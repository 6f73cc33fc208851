"""The names of cache.py as they were; nothing new is to use them."""

from __future__ import annotations

from pathlib import Path

from lockedenv.backends.cache import ARCHIVE_HASHES as HASHES
from lockedenv.backends.cache import Program, extract_program
from lockedenv.backends.cache import is_whole_wheel as whole_wheel
from lockedenv.backends.cache import note_archive_hashes as note_hashes
from lockedenv.backends.cache import note_unpacked as note
from lockedenv.backends.cache import read_archive_hashes as known
from lockedenv.backends.cache import remove as discard
from lockedenv.backends.cache import remove_changed as drop_changed

__all__ = ["HASHES", "note_hashes", "whole_wheel", "note", "known", "discard", "drop_changed"]


def program(archive: Path, member: str, name: str, cache: Path) -> Path:
    return extract_program(archive, Program(member, name), cache)
