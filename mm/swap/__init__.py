"""Swap: pages that memory has no room for, kept on a device and known to be the same when they come back.

`slots` says which pages are taken and by how many; `store` puts pages on a `device` and gets them back, sealed by `seal` or
`aes_gcm` and packed by `pack`; `policy` chooses which pages go. None of it waits for the GIL, for what it serves may be what
holds it.
"""
