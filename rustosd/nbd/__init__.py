"""Disks for NBD clients: handshakes (negotiation), requests and replies (engine and below), where clients come in (server)."""
