"""The training side of alignment; these files import torch."""
