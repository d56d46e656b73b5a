"""The process that runs the models of tasks and of speech to text, and the agent's end of the socket between the two."""
