"""Continual fine-tuning: labels over MQTT to a candidate, its evaluation and its acceptance."""
