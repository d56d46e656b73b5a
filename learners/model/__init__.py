"""The policy network: spec, features, fusion, heads, exploration, Shapley values."""
