"""Adapters: their store, the built-in tasks, their training; nothing is imported until it is asked for."""
