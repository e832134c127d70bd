def measure(report, rounds, say): pass
