"""Simulated plants: gymnasium environments and the demo world."""
