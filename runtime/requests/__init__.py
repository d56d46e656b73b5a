"""Handlers of `request/<verb>` in the agent."""
