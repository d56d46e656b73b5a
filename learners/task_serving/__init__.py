"""A task in service: its versions on disk, the readings that it takes, its results, and the runner of its models."""
