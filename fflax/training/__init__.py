"""Training: the driver, schedules, optimisers, the loop, evaluation and checkpoints."""
