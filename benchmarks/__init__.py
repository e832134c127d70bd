"""How fast the stack is, as ratios against its peers in one run: `scripts/bench`, described in docs/performance.md."""
