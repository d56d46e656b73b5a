"""Store the tokens of the replay buffer: in this process, or divided among shards on several machines."""
