"""When an encoder follows its task, old experience gets new tokens."""
