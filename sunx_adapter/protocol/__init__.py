"""The venues' protocol as pure functions: signing, envelope and errors, the typed account."""
