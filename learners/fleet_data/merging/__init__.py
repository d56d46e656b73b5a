"""Merge the rows of all agents of a group into the one experience store that its learner reads."""
