"""Signal: model, settings, recipes, and the names of released checkpoints.

Not `examples/signal`: a script of this folder that Python starts by its path would import it for the standard module.
"""
