"""A sensor, a device, an encoder and a reward for reflexd, each in a file of its own."""
