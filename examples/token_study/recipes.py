"""Defaults of the study: the defaults of STMI from scratch."""

from examples.stmi.recipes import DEFAULT as DEFAULT
