"""From a live pointer on disk to the engine: policy, encoder and task updates, live experiments."""
