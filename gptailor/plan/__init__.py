"""The plan: frozen data, its normal form, and the only walk over it."""

__all__ = [
    "bounds", "events", "extras", "faults", "layers", "needed", "output_size", "parts", "plan",
    "registry",
    "resolved", "schema", "shares", "stage", "walk", "windows", "wishes", "written",
]  # fmt: skip
