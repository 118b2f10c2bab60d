"""What a plan is: frozen data, its normal form, and the only walk over it."""

__all__ = [
    "bounds", "events", "extras", "faults", "layers", "needed", "parts", "plan", "registry",
    "resolved", "schema", "shares", "stage", "walk", "windows", "wishes", "written",
]  # fmt: skip
