"""The parts of post-training that need torch."""
