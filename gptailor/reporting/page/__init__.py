"""The report: one page of HTML that needs no other file, with charts by Vega-Altair."""

__all__ = ["charts", "layer_map", "page", "run_report", "run_sections", "scores_section", "section"]
