"""Checkpoints on disk: folders, the Hub, the models of a plan. No tensor library.

Other packages use `models`, `folder`, `tensor`, `vocabulary` and `token_cut` (tokens), `datasets`
(rows of text files), `chat_template`, `foreign_code`, `files` (safe reading, errors, JSON, also as
typed records), `cache_folder` (results that can be computed again too), and the packages named
here. `hub` is for fetching.
"""

__all__ = [
    "cache_folder",
    "chat_template",
    "datasets",
    "families",
    "files",
    "folder",
    "foreign_code",
    "formats",
    "hub",
    "models",
    "tensor",
    "token_cut",
    "union",
    "vocabulary",
    "write",
]
