"""Texts that ship with pomona, so that calibration and evaluation need no data set."""
