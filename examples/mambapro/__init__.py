"""MambaPro without its Mamba: parallel adapters and residual prompts in a frozen tower.

The Mamba aggregation is left out. It needs a CUDA extension or takes about a hundred times the training time of the
STMI head (measured with a plain scan), it scores below DeMo on all three data sets, and the released initial values
erase its memory.
"""
