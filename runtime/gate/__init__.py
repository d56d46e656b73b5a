"""The gate side of the supervisor process: agent, devices, operator commands, status, latches."""
