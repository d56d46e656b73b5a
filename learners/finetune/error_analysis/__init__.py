"""What a model gets wrong: metrics of slices of the examples, and the parts of an example that decided."""
