"""What people look at: maps, tables, cards, progress."""

__all__ = [
    "block_map",
    "card",
    "cells",
    "difference",
    "encoded",
    "evaluation",
    "found",
    "layer_view",
    "measure",
    "page",
    "plan_map",
    "progress",
    "quantities",
    "summary",
    "table",
]
