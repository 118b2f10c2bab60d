"""What to try next: spaces of plans, and strategies that search them. JAX, on the CPU."""
