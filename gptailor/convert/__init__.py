"""Plans from other tools' files, and back.

Others use `mergekit.importer`, `mergekit.exporter`, `paper`, and `note` for what they have to say.
"""

__all__ = ["mergekit", "note", "paper"]
