"""The checks that a candidate must pass before it goes live."""
