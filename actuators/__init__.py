"""What can be done: the action space, settings, the rule language, and the wire format of commands."""
