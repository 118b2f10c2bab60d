"""The texts that the specialists learn from, and those that they are measured on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """What a user says and what the model should answer; without a prompt, plain text."""

    prompt: str
    answer: str
