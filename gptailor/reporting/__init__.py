"""Reports for people: maps, tables, cards, progress."""

__all__ = [
    "fit_words",
    "known_layers",
    "layer_cells",
    "layer_view",
    "measure",
    "model_card",
    "quantities",
    "records",
    "show",
    "table",
    "terminal_encoding",
]
