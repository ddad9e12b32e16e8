"""The folder in which downloads and trained networks are kept on the user's machine."""

from __future__ import annotations

import os
from pathlib import Path

import pooch


def cache_folder() -> Path:
    """`HASTEN_CACHE`, if that is set, else the system's cache folder for hasten."""
    return Path(os.environ.get("HASTEN_CACHE") or pooch.os_cache("hasten")).expanduser()
