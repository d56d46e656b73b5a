"""Device drivers: each camera or microphone runs in a process of its own under a watchdog."""
