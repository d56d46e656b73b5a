"""The gate side of the supervisor process: host, operator commands, status, latches, IPC with the agent."""
