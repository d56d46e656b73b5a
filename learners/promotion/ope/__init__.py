"""Off-policy evaluation on logged decisions."""
