"""From a live pointer on disk to the engine: policy and encoder updates, probation, task versions."""
