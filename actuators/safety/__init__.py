"""The pure gate: limits, the state of each actuator, and the rulings on proposed actions."""
