"""Everything that flawmap raises on purpose. Each message says what is wrong, where, and what to do.

FlawmapError
├── UsageError         an option or argument that makes no sense          exit code 2
├── DataError          pictures, masks, lists or folders that cannot serve   exit code 3
├── GateError          a gate refused: parity, audit, acceptance          exit code 4
├── CalibrationError   a promise that cannot be kept, a verdict that cannot be given   exit code 1
├── BundleError        a bundle that is damaged, changed or of another version         exit code 1
├── MissingExtra       a package of an extra is not installed             exit code 1
├── LedgerError        a row of the ledger that could not be written or read   exit code 1
└── Unavailable        the station judges nothing now: full, blocked, closing  exit code 1
"""

from __future__ import annotations


class FlawmapError(Exception):
    exit_code = 1


class UsageError(FlawmapError, ValueError):
    exit_code = 2


class DataError(FlawmapError, ValueError):
    exit_code = 3


class GateError(FlawmapError):
    exit_code = 4


class CalibrationError(FlawmapError, ValueError):
    pass


class BundleError(FlawmapError, ValueError):
    pass


class MissingExtra(FlawmapError, ImportError):
    """A package of an extra is missing: says which `pip install "flawmap[extra]"` brings it."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(f'{what} needs {package}: pip install "flawmap[{extra}]"')


class LedgerError(FlawmapError):
    """No verdict is answered without its row."""


class Unavailable(FlawmapError):
    """The station takes no part now; `code` says why in a word, `retry_s` when to ask again."""

    def __init__(self, message: str, code: str, retry_s: int = 1) -> None:
        super().__init__(message)
        self.code, self.retry_s = code, retry_s
