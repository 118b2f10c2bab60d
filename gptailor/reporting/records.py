"""Rows of results as a table of pandas, and as a table of a notebook."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gptailor.plan.optional_packages import packages_needed


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return rows as a `pandas.DataFrame`. Raises MissingPackageError without pandas."""
    with packages_needed("a table of pandas"):
        import pandas
    return pandas.DataFrame(rows)


def html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return columns of rows as a table in HTML; missing values are empty."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = (
        "".join(f"<td>{escape(_cell(row.get(name)))}</td>" for name in columns) for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
