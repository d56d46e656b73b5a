"""Deliberation: a slow model chooses one of the listed goals from a text about the present state; settings, backends, runner."""
