"""Safeguards on feedback: rewards by decision, consistency of sources."""
