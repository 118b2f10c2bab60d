"""Checkpoints on disk: folders, the Hub, the models of a plan. No tensor library.

Other packages use `models`, `folder`, `tensor`, `vocabulary` and `token_cut` (tokens), `datasets`
(rows of text files), `tokenizer_settings`, `files` (safe reading, errors, JSON, also as typed
records), `cache_folder` (results that can be computed again too), and the packages named here.
`hub` is for fetching.
"""

__all__ = [
    "cache_folder",
    "datasets",
    "families",
    "files",
    "folder",
    "formats",
    "hub",
    "models",
    "tensor",
    "token_cut",
    "tokenizer_settings",
    "union",
    "vocabulary",
    "write",
]
