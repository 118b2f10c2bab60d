"""The sections on a search's trials, in order."""

from gptailor.reporting.page.layer_charts import effect_sections, window_section
from gptailor.reporting.page.progress_charts import curve_section, held_section, progress_section
from gptailor.reporting.page.run_report import RunReport
from gptailor.reporting.page.search_charts import objectives_section, trials_section
from gptailor.reporting.page.section import Section


def run_sections(report: RunReport) -> list[Section]:
    """Return the sections on trials and layers, and a last section on missing parts."""
    candidates = [
        curve_section(report),
        trials_section(report),
        objectives_section(report),
        progress_section(report),
        held_section(report),
        *effect_sections(report),
        window_section(report),
    ]
    sections = [section for section in candidates if section is not None]
    if report.missing:
        sections.append(Section("missing", "Missing parts", " ".join(report.missing)))
    return sections
