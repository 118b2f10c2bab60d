"""A section of the report's page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import altair as alt


@final
@dataclass(frozen=True)
class ShownTable:
    """A chart's data in words and numbers; each row is as long as the head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, a chart, and the chart's data as a table.

    `anchor` names the section in links, and the chart's picture in files. `note` is a line below
    the chart and in its picture, such as a legend of its marks. `html` stands below it unchanged.
    `plans` are texts of plans by name. If a datum of the chart has such a name in its field `plan`,
    a click on it shows the text; a list below the chart shows it too. A long table, or a chart's
    table, is folded unless `open`.
    """

    anchor: str
    title: str
    words: str
    chart: "alt.TopLevelMixin | None" = None
    table: ShownTable | None = None
    html: str = ""
    plans: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    open: bool = False
