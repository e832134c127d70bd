# Compiled: each connection that is handed out goes through it.
