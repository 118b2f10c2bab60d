"""Plans from other tools' files, and back.

Others use `mergekit.importer`, `mergekit.exporter`, `importers` of installed packages, and `note`
for what they have to say.
"""

__all__ = ["importers", "mergekit", "note"]
