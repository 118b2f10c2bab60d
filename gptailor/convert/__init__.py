"""Plans from other tools' files, and back: mergekit's YAML, the paper's search results."""
