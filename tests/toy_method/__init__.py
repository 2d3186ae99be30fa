"""A method as somebody adds one: settings and a model that keeps the contract, in a folder of two files."""
