"""Starts and restarts the child processes; the embedded broker; reload."""
