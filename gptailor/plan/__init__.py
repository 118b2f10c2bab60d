"""The plan: frozen data, its normal form, and the only walk over it."""

__all__ = [
    "bounds", "extras", "faults", "layers", "needed", "parts", "plan", "registry", "resolved",
    "shares", "stage", "walk", "windows", "wishes", "written",
]  # fmt: skip
