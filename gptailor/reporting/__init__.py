"""Reports for people: maps, tables, cards, progress."""

__all__ = [
    "difference",
    "evaluation",
    "expectations",
    "layer_cells",
    "layer_view",
    "measure",
    "model_card",
    "plan_map",
    "progress",
    "quantities",
    "records",
    "search_text",
    "summary",
    "table",
    "terminal_encoding",
]
