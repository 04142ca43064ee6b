"""Balances that arrive by themselves: one push connection per exchange, and who waits for it."""

from sunx_adapter.stream.account import StreamState, StreamStatus

__all__ = ["StreamState", "StreamStatus"]
