"""The exchanges: the ccxt-facing base class, one read, the synchronous and asynchronous classes."""
