"""Read windows on Redis, shared by any number of processes and machines."""

import time
from functools import lru_cache
from importlib.util import find_spec
from typing import Final

from ccxt.base.errors import NotSupported

MAX_LATE_SECONDS: Final = 4.0
_REDIS_SECONDS: Final = 2.0
_MAX_WAIT_SECONDS: Final = 60.0

_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local key, limit, window = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local late, name, remaining = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local max_late = tonumber(ARGV[6])

redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
-- A read that is asked for again was not written.
redis.call('ZREM', key, name .. '/1')
local taken = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
local count = #taken / 2
if count > 0 and tonumber(taken[#taken]) > now + max_late + 1 then
    -- The clock of Redis went back: count these reads as reads of now.
    for each = 1, #taken, 2 do redis.call('ZADD', key, now, taken[each]) end
    taken = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
end

local wait, spent = 0, 1
if remaining >= 0 then
    spent = limit - count - remaining
elseif count >= limit then
    -- Never 0, which means granted.
    wait, spent = math.max(tonumber(taken[2 * (count - limit) + 2]) + window - now, 0.001), 0
end
for each = 1, spent do
    redis.call('ZADD', key, string.format('%.6f', now + late), name .. '/' .. each)
end
-- Long enough for reads that other processes count later than this one.
redis.call('PEXPIRE', key, math.ceil((window + max_late) * 1000))
return string.format('%.6f', wait)
"""


class RedisWindows:
    """Windows on Redis. They use the clock of Redis, so machines need not agree on the time.

    Args:
        uri: ``redis://``, ``rediss://`` or ``unix://``.

    Attributes:
        late: how many seconds later reads are counted, because Redis answers slowly.
        unreachable_until: when Redis is tried again, if there is a fallback.
        answered: when Redis last answered.

    Raises:
        NotSupported: the URI cannot be used. The message does not quote it: it may hold a password.
    """

    def __init__(self, uri: str) -> None:
        if not uri.startswith(("redis://", "rediss://", "unix://")):
            raise NotSupported(
                "options['rateLimitStorage'] must be memory:// or, with the extra "
                "sunx-adapter[redis], redis://host:port/db, rediss://… or unix://…"
            )
        if find_spec("redis") is None:
            raise NotSupported("for options['rateLimitStorage'] install sunx-adapter[redis]")
        from redis import Redis  # noqa: PLC0415 - of the extra "redis"
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415

        seconds = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _REDIS_SECONDS)
        try:
            client = Redis.from_url(uri, retry=Retry(NoBackoff(), 0), **seconds)
        except ValueError:
            client = None
        if client is None:
            raise NotSupported(
                "options['rateLimitStorage'] is not the address of a Redis: redis://host:port/db"
            )
        self._script = client.register_script(_SCRIPT)
        self.late = 0.0
        self.unreachable_until = 0.0
        self.answered = 0.0

    def ask(
        self, key: str, name: str, limit: tuple[int, float], late: float, remaining: int = -1
    ) -> float:
        """Take a read, or leave at most ``remaining``. It blocks, and raises redis's exceptions.

        Args:
            key: the name of the user.
            name: the read's own; asking for a read again replaces its earlier grant.
            limit: how many reads in how many seconds.
            late: see the attribute.
            remaining: how many reads may be left; -1 takes a read instead.

        Returns:
            0 if the read is granted, else the seconds to wait before asking again.
        """
        wait = self._script(
            [f"sunx-adapter/{key}"], [*limit, late, name, remaining, MAX_LATE_SECONDS]
        )
        if not 0 <= (seconds := float(wait)) <= _MAX_WAIT_SECONDS:
            raise ValueError("Redis gave an unusable answer")
        self.answered = time.monotonic()
        return seconds


@lru_cache(maxsize=64)
def redis_windows(uri: str, _process: int) -> RedisWindows:
    """The windows on that Redis. The child of a fork gets its own connections."""
    return RedisWindows(uri)
