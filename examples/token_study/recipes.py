"""Defaults of the study: those of STMI from scratch."""

from examples.stmi.recipes import DEFAULT as DEFAULT
