"""`gptailor report`: one page of HTML that needs no other file, with charts by Vega-Altair."""

__all__ = ["command", "report"]
__commands__ = {"report": ("Look", "Make a page about a search, a plan or a model.")}
