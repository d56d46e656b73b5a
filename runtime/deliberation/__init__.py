"""The deliberator's place in the agent: the state in words, when to ask, and which goal is in force."""
