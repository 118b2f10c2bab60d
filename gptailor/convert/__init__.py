"""Plans from other tools' files, and back."""
