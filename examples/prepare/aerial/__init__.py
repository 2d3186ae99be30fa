"""Build the aerial sets from a clone of their public source: `python -m examples.prepare.aerial CLONE OUT`."""
