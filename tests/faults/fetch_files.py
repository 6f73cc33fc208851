"""Fetches the twelve files: fetch_files.py ADDRESS FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from lockedenv.backends.download import FetchError
from network_faults import fetch_quietly, make_items

try:
    fetch_quietly(make_items(sys.argv[1]), Path(sys.argv[2]))
except FetchError as error:
    print(error)
