"""Render the synthetic set: `python -m examples.prepare.synthetic --out DIR`."""

from examples.prepare.synthetic.dataset import main

main()
