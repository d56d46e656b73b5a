"""The concrete streams: camera, microphone, text, telemetry, task output; and fault injection."""
