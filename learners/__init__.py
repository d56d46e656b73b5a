"""Everything that learns, and what it learns from."""
