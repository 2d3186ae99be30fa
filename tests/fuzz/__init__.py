"""Fuzzer of files and commands: a file is read correctly, refused with its name, or skipped and counted.

A variant is made from its seed, so that a number repeats it: `python -m tests.fuzz --seed 17 --variants 1`.
"""
