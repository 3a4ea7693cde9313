"""Errors that a user can cause, and mend.

Every message names the value, what was expected, and what to do next. `cli.py` prints the message and exits 2;
anything that is not a `TriadError` is a bug and keeps its traceback.
"""


class TriadError(Exception):
    """Root of all errors that the user, rather than the code, can put right."""


class StoreError(TriadError):
    """The store is missing, is no store, or does not hold what was asked for."""


class RecordMismatch(StoreError):
    """A feature was written by another encoder, or by the same one configured otherwise."""


class DamagedStore(StoreError):
    """Bytes on disk are missing or fail their checksum."""
