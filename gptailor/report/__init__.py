"""What people look at: maps, tables, cards, progress."""
