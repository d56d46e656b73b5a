"""Check examples before they train: those that a task cannot read, and pictures or sounds of the held-out file that come back as labels."""
