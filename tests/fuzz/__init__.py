"""Fuzzer of files and commands: whatever lies on the disk is read rightly, refused by name, or passed over and counted.

A variant is made from its seed, so that a number repeats it: `python -m tests.fuzz --seed 17 --variants 1`.
"""
