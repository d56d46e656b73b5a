"""The engine: encodes what is new, fuses, decides; history, compiled policy, builder."""
