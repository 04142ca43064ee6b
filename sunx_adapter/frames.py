"""Removes the frames of exceptions, which may hold secrets."""

from typing import TypeVar

__all__ = ["without_frames"]

Failure = TypeVar("Failure", bound=BaseException)


def without_frames(error: Failure) -> Failure:
    """The same exception, without its traceback, cause and context."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
