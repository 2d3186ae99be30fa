"""How long the layers take and how much memory they need: `python -m benchmarks`, or `make bench`."""
