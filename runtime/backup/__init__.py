"""Write a state folder into one file while the daemon runs, and restore it."""
