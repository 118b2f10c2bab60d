"""Rotary embeddings of a configuration in one form, whichever keys have them."""

from collections.abc import Mapping
from typing import Any, final

from pydantic import Field

from gptailor.checkpoint.families.layer_config import Config
from gptailor.plan.plan import Closed, Several


@final
class Rotary(Closed):
    """The forms in which a family's configurations have the rotary embeddings.

    `older` are the keys of older configurations for `rope_theta` and `partial_rotary_factor`, or
    for the base of each kind of layers. `renamed` are types by their older names. `without` are
    parts that are no matter of a text. `base` is that of settings without one, if it isn't the
    default's.
    """

    older: dict[str, str] = Field(default_factory=dict)
    renamed: dict[str, str] = Field(default_factory=dict)
    without: Several[str] = ()
    base: float | None = None

    def read(self, config: Config, default: Any) -> dict[str, Any]:
        """Return the settings in one form, from `rope_parameters` and from the older keys."""
        usual = _object(default)
        if any(isinstance(value, Mapping) for value in usual.values()):
            return self._by_kind(config, usual)
        own = usual if usual.get("rope_type", "default") != "default" else {}
        stated = config.get("rope_scaling") or config.get("rope_parameters") or own
        form = _form(_object(stated), config, self.renamed)
        usual = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0, **usual}
        if self.base is not None:
            usual["rope_theta"] = self.base
        for name in ("rope_theta", "partial_rotary_factor"):
            form.setdefault(name, config.get(self.older.get(name, name), usual[name]))
        return {key: value for key, value in form.items() if key not in self.without}

    def _by_kind(self, config: Config, usual: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of each kind of layers.

        Older configurations may have a base for each kind, and a scaling of full layers.
        """
        stated = _object(config.get("rope_parameters")) or ({} if self.older else usual)
        read: dict[str, Any] = {}
        for kind, own in usual.items():
            wide = self.older and kind == "full_attention"
            scaling = _object(config.get("rope_scaling")) if wide else {}
            read[kind] = _form({**_object(stated.get(kind)), **scaling}, config)
            if kind in self.older:
                base = config.get(self.older[kind], _object(own).get("rope_theta"))
                read[kind].setdefault("rope_theta", base)
        return read


def _object(value: object) -> Mapping[str, Any]:
    """Return a setting as an object: anything else is its type, and equals itself only."""
    if isinstance(value, Mapping):
        return value
    return {"rope_type": value} if value else {}


_ASIDE = ("type", "max_position_embeddings")
"""Keys of a rotary setting that repeat another key."""


def _form(
    setting: Mapping[str, Any], config: Config, renamed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a setting with a type, without Nones, with the lengths that the type needs."""
    form = {key: value for key, value in setting.items() if value is not None and key not in _ASIDE}
    kind = form.get("rope_type") or setting.get("type") or "default"
    if not isinstance(kind, str):
        return form
    form["rope_type"] = kind = (renamed or {}).get(kind, kind)
    length = config.get("max_position_embeddings")
    if kind in {"llama3", "yarn", "longrope"}:  # they know the length before they stretched it
        form.setdefault("original_max_position_embeddings", length)
        if "original_max_position_embeddings" in config:
            form["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if kind == "dynamic" or (kind in {"yarn", "longrope"} and "factor" not in form):
        form["max_position_embeddings"] = length
    return form
