"""Steering a running daemon: JSON-RPC 2.0 over a unix socket, typed at both ends by the same table of methods."""
