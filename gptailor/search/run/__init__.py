"""What happens between a strategy and its trials: schedule, workers, study. Never torch."""
