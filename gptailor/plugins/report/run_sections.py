"""The sections on a search's trials, in order."""

from gptailor.plugins.report.effects import Effects
from gptailor.plugins.report.layer_charts import effect_sections, window_section
from gptailor.plugins.report.progress_charts import curve_section, held_section, progress_section
from gptailor.plugins.report.run_report import RunReport
from gptailor.plugins.report.search_charts import objectives_section, trials_section
from gptailor.plugins.report.section import Section


def run_sections(report: RunReport, effects: Effects) -> list[Section]:
    """Return the sections on trials and layers, and a last section on missing parts."""
    candidates = [
        curve_section(report),
        trials_section(report),
        objectives_section(report),
        progress_section(report),
        held_section(report),
        *effect_sections(effects, report.loss_unit),
        window_section(effects, report.loss_unit),
    ]
    sections = [section for section in candidates if section is not None]
    if missing := [*report.missing, *effects.missing]:
        sections.append(Section("missing", "Missing parts", " ".join(missing)))
    return sections
