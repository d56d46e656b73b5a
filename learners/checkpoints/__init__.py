"""Signed policy versions on disk."""
