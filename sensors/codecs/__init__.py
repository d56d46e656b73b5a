"""Untrusted bytes to readings, sound of any rate to 16 kHz, and readings to bytes or a short summary."""
