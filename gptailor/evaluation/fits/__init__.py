"""Everything in a plan that needs a text: neurons, experts, bridges, healing."""

__all__ = [
    "bridge",
    "fit",
    "heal",
    "importance",
    "inner_plans",
    "kept_tensors",
    "narrower",
    "repair",
]
