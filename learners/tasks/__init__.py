"""Supervised task types: heads, losses and metrics of each."""
