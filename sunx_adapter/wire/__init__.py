"""HTTP/1.1 GETs over kept connections: plain code over bytes, moved by threads or by tasks."""
