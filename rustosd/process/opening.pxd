# Compiled: it runs per call.
