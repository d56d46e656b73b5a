"""Continual fine-tuning: labels over MQTT to a candidate, its acceptance, a version, serving."""
