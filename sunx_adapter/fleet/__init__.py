"""Thousands of accounts over many processes and machines, on Dask's ``distributed``.

Install ``sunx-adapter[fleet]``. The modules: ``fleet`` (the application's side), ``membership``
(which worker owns which accounts), ``worker`` (the worker's side), ``messages`` (between the two),
``accounts`` (which accounts belong to one user).
"""

from sunx_adapter.fleet.fleet import Fleet, FleetError

__all__ = ["Fleet", "FleetError"]
