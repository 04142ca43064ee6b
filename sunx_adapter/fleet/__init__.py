"""Thousands of accounts over many processes and machines, on Dask's ``distributed``.

Install ``sunx-adapter[fleet]``. The modules: ``fleet`` (the application's side), ``membership``
(which worker owns which accounts), ``messages`` (between application and worker), ``plugin`` (what
the engine calls on a worker), ``worker`` (the accounts on it), ``accounts`` (each user's accounts).
"""

from sunx_adapter.fleet.fleet import Fleet, FleetError

__all__ = ["Fleet", "FleetError"]
