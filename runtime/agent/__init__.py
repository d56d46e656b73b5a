"""The agent process: build and its steps, components, jobs, subscriptions, entry point."""
