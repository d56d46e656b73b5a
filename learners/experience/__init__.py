"""The durable store of transitions, labels and raw readings; reading it; recovery; episodes."""
