"""The training side of task adapters: torch is imported here, and only here."""
