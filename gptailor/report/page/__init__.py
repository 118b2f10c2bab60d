"""The report: one page of HTML that needs nothing but itself. Charts are made by Vega-Altair."""

__all__ = ["charts", "page", "section"]
