"""What every process needs: title and parent death, log, events, state files, systemd, pacing, HTTP server."""
