"""freqtrade with this package's exchanges: ``python launch.py trade -c watch.json``."""

from freqtrade.main import main  # type: ignore[import-not-found, import-untyped, unused-ignore]

from sunx_adapter import register_with_ccxt

if __name__ == "__main__":
    register_with_ccxt()
    main()
