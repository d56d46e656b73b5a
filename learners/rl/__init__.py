"""Reinforcement learning: algorithms, replay buffer, batches, optimiser."""
