"""The exchanges: what ccxt asks, one read written once, and how the two kinds wait."""
