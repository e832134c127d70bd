# Compiled: one of these runs per call.
