"""The software stop on its way: its messages, the stop listener in a process of its own, and what the gate does with its statements."""
