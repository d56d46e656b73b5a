"""What is perceived: sensors, their settings, and the readings they publish."""
