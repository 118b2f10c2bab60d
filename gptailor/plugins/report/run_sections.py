"""The sections on a search's trials, in order."""

from gptailor.plugins.report.effects import Effects
from gptailor.plugins.report.layer_charts import effect_sections, window_section
from gptailor.plugins.report.progress_charts import curve_section, held_section, progress_section
from gptailor.plugins.report.search_charts import objectives_section, trials_section
from gptailor.plugins.report.section import Section
from gptailor.searching.run_reading import RunReading

_UNENDED = (
    "The search hasn't ended, so there is no verdict yet. The same search command continues it."
)


def run_sections(run: RunReading, effects: Effects) -> list[Section]:
    """Return the sections on trials and layers, and a last section on missing parts."""
    candidates = [
        curve_section(run),
        trials_section(run),
        objectives_section(run),
        progress_section(run),
        held_section(run),
        *effect_sections(effects, run.ledger.loss_unit),
        window_section(effects, run.ledger.loss_unit),
    ]
    sections = [section for section in candidates if section is not None]
    if missing := [_UNENDED] * (run.notes.result is None) + [*effects.missing]:
        sections.append(Section("missing", "Missing parts", " ".join(missing)))
    return sections
