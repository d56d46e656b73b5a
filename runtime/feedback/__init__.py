"""Rewards and labels in; outcomes; source quarantine; uncertainty queries; raw capture."""
