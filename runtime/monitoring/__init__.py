"""Decisions, events, health, metrics, previews, Home Assistant."""
