"""The plan: frozen data, its normal form, and the only walk over it."""

__all__ = [
    "bounds",
    "events",
    "fault_pages",
    "faults",
    "layer_parts",
    "layers",
    "measures",
    "model_dependencies",
    "model_shares",
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
