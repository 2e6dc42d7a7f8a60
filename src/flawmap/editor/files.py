"""Files of the editor: read whole, and written whole or not at all, also when the power goes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from flawmap.errors import DataError, FlawmapError
from flawmap.run.claim import claimed

NEW = re.compile(r"\..+\.[0-9a-f]{8}\.new")  # a file that is being written


def content_of(path: Path | None) -> bytes | None:
    """None: there is no such file. DataError: it cannot be read."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refused(path: Path, error: OSError) -> FlawmapError:
    """What is said where a disk takes nothing."""
    return FlawmapError(f"{path}: cannot be written ({error.strerror}); nothing was changed")


def put(content: bytes, path: Path) -> None:
    """FlawmapError: it cannot be written; what was there is there still."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        _folder(path.parent)
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    sync(path.parent)


def _folder(path: Path) -> None:
    """Made with what is missing above it, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_unfinished(folders: Iterable[Path], lock: Path) -> None:
    """What a killed save left half written. Where another program is saving, or the disk takes nothing, it stays."""
    found = [
        Path(here, name)
        for folder in folders
        for here, _, names in os.walk(folder)
        for name in names
        if NEW.fullmatch(name)
    ]
    if not found:
        return
    with contextlib.suppress(OSError), claimed(lock) as mine:
        for path in found if mine else ():
            path.unlink(missing_ok=True)
