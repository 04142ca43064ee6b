"""HTTP/1.1 GETs over kept connections: sans-IO code, driven by threads or by tasks."""
