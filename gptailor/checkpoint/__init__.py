"""What is on disk: folders, the Hub, the models of a plan. No tensor library.

Others use `models`, `folder`, `tensor`, `vocabulary` (tokens), `chat_template`, `foreign_code`,
`files` (safe reading, errors), and what the packages here name. `hub` is for who fetches.
"""

__all__ = [
    "chat_template",
    "families",
    "files",
    "folder",
    "foreign_code",
    "formats",
    "hub",
    "models",
    "tensor",
    "union",
    "vocabulary",
    "write",
]
