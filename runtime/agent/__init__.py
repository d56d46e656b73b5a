"""The agent process: build, subscriptions, components, entry point."""
