"""The upload of files to a repository of the Hub, through its own library."""

from collections.abc import Mapping
from pathlib import Path

from gptailor.checkpoint.files import CheckpointError, Stamp, refuse_changed
from gptailor.checkpoint.hub import talking


def upload_folder(
    repo: str,
    files: Mapping[str, Path | bytes],
    seen: Mapping[Path, Stamp],
    *,
    private: bool,
    message: str,
) -> str:
    """Upload files, or contents, as one commit, make the repository if need be; return its URL.

    `seen` are the stamps of the files that were checked.

    Raises CheckpointError: C304 for another file in the place of one that was seen, C501 for a
    token without the right to write, C503.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    hub = HfApi()
    with talking(repo, None):
        try:
            hub.create_repo(repo, private=private, exist_ok=True)
            added = [CommitOperationAdd(name, content) for name, content in files.items()]
            refuse_changed(seen)
            made = hub.create_commit(repo, added, commit_message=message)
        except errors.HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) not in (401, 403):
                raise
            refused = "can't be written: the Hub expects a token with the right to write"
            help_ = "log in by 'hf auth login' with a token that may write, or set HF_TOKEN"
            raise CheckpointError("C501", refused, Path(repo), help_) from error
    return str(made.commit_url)
