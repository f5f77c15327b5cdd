"""Adapters: their store, the built-in tasks, and how they are trained; imported when asked for."""
