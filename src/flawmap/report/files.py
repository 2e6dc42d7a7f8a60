"""A page on disk."""

from __future__ import annotations

import os
from pathlib import Path

from flawmap.errors import FlawmapError


def put(page: str, path: Path) -> Path:
    """Write a page to `path`, whole or not at all. FlawmapError where it cannot be written."""
    content = page.encode("utf-8", "backslashreplace")  # names of files need not be valid Unicode
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except OSError as error:
        why = f"cannot write the page {path}: {error.strerror}; choose a folder you may write to"
        raise FlawmapError(why) from error
    finally:
        if new.exists():
            new.unlink()
    return path
