"""What a plan is: frozen data, its normal form, and the only walk over it."""

__all__ = ["faults", "layers", "parts", "plan", "registry", "stage", "walk", "written"]
