"""What the conformance suite is made of: vectors, the server that plays them, exchanges, report."""
