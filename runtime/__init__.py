"""The processes: supervisor with the gate, agent, page, simulated plant; and the command line."""
