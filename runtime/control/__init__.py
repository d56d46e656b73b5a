"""Payload decoding, inbox, tick."""
