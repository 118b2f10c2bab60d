"""What must hold of a plan: `alone` of the plan by itself, `models` against its models' headers."""
