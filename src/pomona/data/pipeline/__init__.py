"""The data pipeline, on datatrove's blocks. Needs `pip install 'pomona[train]'`; the core never loads it."""
