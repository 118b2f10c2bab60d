"""The report: one page of HTML that needs nothing but itself. Charts are made by Vega-Altair."""

__all__ = ["charts", "layer_map", "page", "run_report", "run_sections", "scores_section", "section"]
