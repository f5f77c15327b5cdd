"""The parts of pre-training that need torch and transformers."""
