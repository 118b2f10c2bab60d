"""The texts that the specialists learn from, and those that they are measured on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A user's prompt and the model's answer; without a prompt it is plain text."""

    prompt: str
    answer: str
