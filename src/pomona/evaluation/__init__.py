"""Measuring what a model can do; nothing is imported until a sub-module is asked for."""
