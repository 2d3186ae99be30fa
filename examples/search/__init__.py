"""Search in an index of `examples.extract`, with a table, JSON and an HTML page of images."""
