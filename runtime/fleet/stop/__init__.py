"""The stop of a fleet: the server asks, a device passes it on to the stop of its own agent, and the answer of that gate goes back."""
