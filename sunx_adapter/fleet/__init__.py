"""Thousands of accounts over many processes and machines, on Dask's ``distributed``.

Install ``sunx-adapter[fleet]``. The modules: ``fleet`` (the application's side), ``membership``
(the owner of each account), ``messages`` (between application and worker), ``worker`` (the plugin
for the engine's workers), ``accounts`` (each user's accounts). *Engine* means ``distributed``.
"""

from sunx_adapter.fleet.fleet import Fleet, FleetError

__all__ = ["Fleet", "FleetError"]
