"""A fleet: the uplink process of a device, and the ingest of a server, which `reflexd fleet serve` runs on Ray."""
