"""The plan: frozen data, its normal form, and the only walk over it."""

__all__ = [
    "arguments",
    "bounds",
    "doors",
    "events",
    "fault_pages",
    "faults",
    "fitted_plan",
    "layer_parts",
    "model_dependencies",
    "optional_packages",
    "output_size",
    "plan",
    "registry",
    "resolved",
    "schema",
    "search_block",
    "sites",
    "stage",
    "windows",
    "written_out",
]  # fmt: skip
