"""Find what could be a stream or an actuator among the topics of a broker, and write a settings file for it."""
