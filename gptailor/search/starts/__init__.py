"""Starting plans: what people do without a search."""
