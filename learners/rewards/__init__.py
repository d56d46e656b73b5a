"""Rewards: computed at each tick, and the decision to which one with a time stamp belongs."""
