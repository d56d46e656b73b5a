"""The files that agent and learner exchange: settings, policy spec, events, progress."""
