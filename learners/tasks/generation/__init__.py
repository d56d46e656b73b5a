"""Generated text under control: constrained decoding, stop and banned words, random tokens from a seed."""
