"""Search in an index of `examples.extract`: table, JSON and a page with pictures."""
