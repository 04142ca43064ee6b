"""A strategy that never trades, for a freqtrade that only shows balances."""

from typing import Any, ClassVar

from freqtrade.strategy import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    IStrategy,
)


class Idle(IStrategy):  # type: ignore[misc, unused-ignore]
    """A strategy without any signal."""

    INTERFACE_VERSION = 3
    timeframe = "1h"
    stoploss = -0.99
    minimal_roi: ClassVar = {"0": 10}

    def populate_indicators(self, dataframe: Any, metadata: Any) -> Any:  # noqa: ARG002, D102
        return dataframe

    def populate_entry_trend(self, dataframe: Any, metadata: Any) -> Any:  # noqa: ARG002, D102
        return dataframe

    def populate_exit_trend(self, dataframe: Any, metadata: Any) -> Any:  # noqa: ARG002, D102
        return dataframe
