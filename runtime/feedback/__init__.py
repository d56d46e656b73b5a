"""Receive rewards and labels; outcomes, source quarantine, reward faults, uncertainty queries, raw capture."""
