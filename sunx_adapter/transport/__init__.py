"""Sending of requests with httpx: deadlines, size limits, the read budget, redaction."""
