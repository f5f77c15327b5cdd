"""Text: what ships with pomona, readers of public data sets, and the way from web pages to packed tokens."""
