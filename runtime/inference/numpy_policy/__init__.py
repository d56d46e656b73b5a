"""The models in numpy, without torch: inputs of encoders, history, input statistics, heads, and draws."""
