"""The functions that the engine runs on a worker, and the plugin that keeps their state."""

import asyncio
import contextlib
import gc
import logging
from typing import Final

from distributed import Worker, WorkerPlugin

from sunx_adapter.fleet.messages import Assignment, Released, Report, Request
from sunx_adapter.fleet.worker import FleetAccounts

_ABANDONED_SECONDS: Final = 60.0
_PLUGIN: Final = "sunx-adapter-fleet"


class FleetPlugin(WorkerPlugin):
    """The accounts of all fleets on this worker, by the fleet's id."""

    def __init__(self) -> None:
        self.fleets: dict[str, FleetAccounts] = {}
        self._closing_abandoned: asyncio.Task[None] | None = None

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Called by the engine at the start."""
        import ccxt.async_support  # noqa: F401, PLC0415 - slow, and needed by every account

        # Modules are half of all objects here: the garbage collector need not look at them again.
        gc.collect()
        gc.freeze()
        _raise_file_limit()
        logging.getLogger("distributed.worker").addFilter(_is_unrelated)
        self._closing_abandoned = asyncio.create_task(self._close_abandoned())

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Called by the engine at the end."""
        if self._closing_abandoned is not None:
            self._closing_abandoned.cancel()
        while self.fleets:
            await self.fleets.popitem()[1].close()

    async def _close_abandoned(self) -> None:
        while True:
            await asyncio.sleep(_ABANDONED_SECONDS / 4)
            for fleet in [
                f for f, kept in self.fleets.items() if kept.silence() > _ABANDONED_SECONDS
            ]:
                await self.fleets.pop(fleet).close()


def _is_unrelated(record: logging.LogRecord) -> bool:
    """False for the engine's log line about each call of :func:`collect`."""
    return not record.getMessage().startswith(f"Run out-of-band function {collect.__name__!r}")


async def _accounts_of(fleet: str, worker: Worker) -> FleetAccounts:
    plugin = worker.plugins.get(_PLUGIN)
    if plugin is None:
        plugin = FleetPlugin()
        await worker.plugin_add(plugin=plugin, name=_PLUGIN)
    assert isinstance(plugin, FleetPlugin)
    if fleet not in plugin.fleets:
        plugin.fleets[fleet] = FleetAccounts()
    return plugin.fleets[fleet]


# The engine calls these by name and fills in ``dask_worker``.


async def assign(fleet: str, assignment: Assignment, dask_worker: Worker) -> Released:
    """:meth:`FleetAccounts.assign` on the worker that runs it."""
    return (await _accounts_of(fleet, dask_worker)).assign(assignment)


async def collect(fleet: str, request: Request, dask_worker: Worker) -> Report:
    """:meth:`FleetAccounts.collect` on the worker that runs it."""
    return await (await _accounts_of(fleet, dask_worker)).collect(request)


async def leave(fleet: str, dask_worker: Worker) -> None:
    """Release all accounts: the application ends."""
    plugin = dask_worker.plugins.get(_PLUGIN)
    if isinstance(plugin, FleetPlugin) and fleet in plugin.fleets:
        await plugin.fleets.pop(fleet).close()


def _raise_file_limit() -> None:
    """Allow as many open files as possible: an account may need two."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - not on every system

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
