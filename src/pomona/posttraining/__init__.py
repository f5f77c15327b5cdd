"""Alignment: supervised fine-tuning, reward models, preferences, MDLOO, the iterative teaching committee."""
