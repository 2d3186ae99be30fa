"""Signal: model, settings, recipes, and the names of released checkpoints.

The folder is not called `signal`: a script in `examples` that is started by its path would import it instead of the
standard module.
"""
