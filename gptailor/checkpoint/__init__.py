"""What is on disk: folders, the Hub, the models of a plan. No tensor library.

Others use `models`, `folder`, `tensor`, `vocabulary` (tokens), `chat_template`, `files` (safe
reading, errors), `records` (typed JSON), and what the packages here name. `hub` is for who fetches.
"""

__all__ = [
    "chat_template",
    "families",
    "files",
    "folder",
    "formats",
    "hub",
    "models",
    "records",
    "tensor",
    "union",
    "vocabulary",
    "write",
]
