"""A study in a SQLite database that the user names, opened to read only: `stored_study`."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

from optuna.storages import RDBStorage

from gptailor.checkpoint.files import CheckpointError
from gptailor.searching.run.study import Study, quiet, read_study, refusal

_SQLITE: Final = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<file>[^?]+)")
_PASSWORD: Final = re.compile(r"://[^/@\s]*@")


def stored_study(url: str, name: str) -> Study:
    """Return the study of that name in a SQLite database, which must exist and stays as it is.

    Raises CheckpointError C903 for another kind of storage, which can't be opened here without
    writing into it, and for an unreadable database.
    """
    match = _SQLITE.fullmatch(url)
    place = Path(_PASSWORD.sub("://…@", url) if match is None else match["file"])
    if match is None:
        message = "expected a storage sqlite:///FILE, which can be opened to read only"
        help_ = "optuna.copy_study copies a study of another database into a SQLite file"
        raise CheckpointError("C903", message, place, help_)
    if not place.is_file():
        raise CheckpointError("C903", "there is no such database", place, "name an existing file")
    read_only = f"sqlite:///file:{quote(str(place.absolute()))}?mode=ro&uri=true"
    try:
        with quiet():
            storage = RDBStorage(read_only, skip_table_creation=True)
            try:
                return read_study(storage, name, place)
            finally:
                storage.remove_session()
    except Exception as error:  # SQLAlchemy and Optuna raise errors of many kinds
        raise refusal(error, (), name, place) from error
