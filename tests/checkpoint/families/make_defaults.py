"""Writes the values that absent keys of configurations have, into `defaults.json`.

    python tests/checkpoint/families/make_defaults.py

They are transformers' own: the defaults of its configurations' classes, for the keys that the
families in `gptailor/checkpoint/families/` name. `--check` ends with 1 if the file isn't current.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, __version__
from transformers import logging as transformers_logging

from gptailor.checkpoint import families
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.compatibility import ALIASES, ROTARY

FILE = Path(families.__file__).with_name("defaults.json")
COMPUTED = {"head_dim", "num_key_value_heads"}
"""Keys that a configuration computes of others, if it has none."""


def table() -> str:
    """Return the file's text, a model type a line."""
    transformers_logging.set_verbosity(logging.ERROR)
    rows = {model_type: dict(defaults(model_type)) for model_type in sorted(FAMILY_OF)}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return f'{{"transformers": "{__version__}", "types": {{\n{lines}\n}}}}\n'


def defaults(model_type: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys that a family of this type names, with their defaults."""
    config = CONFIG_MAPPING[model_type]
    stated = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING
    }
    whole = config().to_dict()
    computed = {key: value for key, value in whole.items() if key not in COMPUTED}
    for names in FAMILY_OF[model_type].agree:
        for key in names.split() if isinstance(names, str) else ():
            for name in (key, config.attribute_map.get(key, key), *ALIASES.get(key, ())):
                if name in stated or name in computed:
                    yield key, stated.get(name, computed.get(name))
                    break
    yield from rotary(whole.get("rope_parameters") or {}, getattr(config, "default_theta", None))


def rotary(given: Mapping[str, Any], base: Any) -> Iterator[tuple[str, Any]]:
    """Yield the defaults of the rotary embeddings, but for 10,000 as base and 1 as factor."""
    theta, partial, whole = ROTARY
    if given.get("rope_type") == "default":
        base = given["rope_theta"]
    elif given:
        yield whole, given
    if isinstance(base, float) and base != 10_000.0:
        yield theta, base
    if (factor := given.get(partial, 1.0)) != 1.0:
        yield partial, factor


if __name__ == "__main__":
    if not FILE.parent.samefile(Path(__file__).parents[3] / "gptailor/checkpoint/families"):
        raise SystemExit(f"this would write '{FILE}', of another copy: set PYTHONPATH=.")
    current = table()
    if "--check" in sys.argv[1:]:
        sys.exit(int(FILE.read_text(encoding="utf-8") != current))
    FILE.write_text(current, encoding="utf-8")
