"""Checkpoints on disk: folders, the Hub, the models of a plan. No tensor library.

Other packages use `models`, `folder`, `tensor`, `vocabulary` and `token_counter` (tokens),
`chat_template`, `foreign_code`, `files` (safe reading, errors), `records` (typed JSON), and the
packages named here. `hub` is for fetching.
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
    "records",
    "tensor",
    "token_counter",
    "union",
    "vocabulary",
    "write",
]
