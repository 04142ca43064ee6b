"""The conformance suite: vectors, the servers that send them, exchanges under test, the report."""
