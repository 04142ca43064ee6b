"""Thousands of accounts over many processes and machines, on Dask's ``distributed``.

Install ``sunx-adapter[fleet]``. The modules: ``fleet`` (the application's side), ``membership``
(which worker owns which accounts), ``messages`` (between application and worker), ``worker`` (the
engine's plugin, with the accounts of a worker), ``accounts`` (each user's accounts).
"""

from sunx_adapter.fleet.fleet import Fleet, FleetError

__all__ = ["Fleet", "FleetError"]
