"""What a terminal shows of a daemon: `status`, `top`, and banner, live line and events of `run`; an MQTT client like any other."""
