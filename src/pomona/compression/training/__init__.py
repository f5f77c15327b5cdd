"""The training side of compression: torch is imported here, and only here."""
