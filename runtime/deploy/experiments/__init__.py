"""Live experiments: which version acts at a tick, what its rewards prove, and when the live version moves."""
