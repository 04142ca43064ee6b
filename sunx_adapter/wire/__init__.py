"""HTTP/1.1 GET requests over kept connections, for threads and for tasks."""
