"""The page: a process of its own that talks MQTT to the agent and web sockets to browsers."""
