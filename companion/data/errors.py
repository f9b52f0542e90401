"""What can go wrong with data: it is not there, or it is not what was pinned."""

__all__ = ["CorruptDataError", "DataError", "MissingDataError"]


class DataError(Exception):
    """Base of the errors of :mod:`companion.data`."""


class MissingDataError(DataError, FileNotFoundError):
    """A file of a data set was found in none of the places searched.

    The message is one line: what is missing, where it was looked for, and the command that brings
    it.
    """


class CorruptDataError(DataError, ValueError):
    """A file is there, but its size or its SHA-256 differs from the pinned one.

    The message names the file, what was expected and what was found.
    """
