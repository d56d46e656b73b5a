"""The process that runs the models of tasks beside the agent, and the agent's end of the socket between the two."""
