"""The two commands: `rustosd` is the daemon, `rustosctl` steers it."""
