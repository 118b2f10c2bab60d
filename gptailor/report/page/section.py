"""A section of the report's page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import altair as alt


@final
@dataclass(frozen=True)
class ShownTable:
    """What a chart shows, in words and numbers; a row is as long as the head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, a chart, and below it the same as a table.

    `anchor` names the section in links and the chart's picture in files. `note` is a line below the
    chart, such as what its marks mean, which its picture has too; `html` stands below that as it
    is. `plans` are texts of plans by a name: where a datum of the chart has such a name as its
    field `plan`, a click on it shows the text, and so does a list below the chart. A table that is
    long, or of a chart, is folded; `open` shows it unasked.
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
