"""`reflexd train`: lock-step training in gymnasium environments."""
