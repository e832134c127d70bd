"""The status page and /status.json: what the daemon shows of itself to a browser."""
