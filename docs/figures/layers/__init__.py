"""The pictures of the pages of the layers, with numbers that the library computes.

`python -m docs.figures.layers` draws all of them anew.
"""
