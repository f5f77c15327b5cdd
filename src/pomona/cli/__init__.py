"""The `pomona` command: one file per sub-command, each imported only when it is called."""
