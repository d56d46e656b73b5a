"""What every process needs: title and parent death, log, systemd, pacing, HTTP server."""
