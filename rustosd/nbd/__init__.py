"""Disks for NBD clients: the handshake (negotiation), requests and replies (peer, engine), and where clients come in (server)."""
