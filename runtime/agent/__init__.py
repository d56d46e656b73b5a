"""The agent process: build, components, jobs, subscriptions, entry point."""
