"""Untrusted bytes to readings, and readings to bytes or a short summary."""
