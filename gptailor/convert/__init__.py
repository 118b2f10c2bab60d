"""Plans from other tools' files, and back.

Others use `mergekit.importer`, `mergekit.exporter`, and `note` for what they have to say.
"""

__all__ = ["mergekit", "note"]
