"""Training: schedule, step, checkpoints, metrics, evaluation."""
