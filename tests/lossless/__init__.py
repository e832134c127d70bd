"""Nothing lost: what a disk promised, checked after power cuts, kills and errors.

`history` knows what every sector may hold; `load` drives an NBD server with libnbd and keeps a history; `medium` starts what is
cut: stores whose unflushed data really vanish.
"""
