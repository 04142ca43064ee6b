"""The exchanges: the ccxt-facing base class, one read, and the two kinds of exchange."""
