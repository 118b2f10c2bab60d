"""The search results that the GPTailor paper and its predecessor released, as plans."""
