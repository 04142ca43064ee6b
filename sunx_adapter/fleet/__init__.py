"""Thousands of accounts over many processes and machines, on Dask's ``distributed``.

Install ``sunx-adapter[fleet]``. The modules: ``fleet`` (what an application uses), ``worker`` (what
reads the accounts), ``messages`` (what passes between them), ``accounts`` (the keys file).
"""

from sunx_adapter.fleet.fleet import Fleet, FleetError

__all__ = ["Fleet", "FleetError"]
