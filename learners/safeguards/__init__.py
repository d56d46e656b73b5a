"""Safeguards on feedback: rewards by decision, sequential tests, consistency of sources."""
