"""Pre-training: recipes, stages, the optimizer of the report, and what a run will cost."""
