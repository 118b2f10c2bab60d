"""Which tensors of a layer are its norms, and what its projections do, by their modules' names."""

import re
from collections.abc import Sequence
from functools import lru_cache

from gptailor.plan.parts import NORMS, Branch

Roles = tuple[tuple[str, str], ...]
"""Names within a layer, `*` standing for one part between dots, and what their tensors are."""

_ROLES: dict[Branch, dict[str, str]] = {
    "attn": {
        "q": "q_proj q_a_proj q_b_proj Wq",
        "k": "k_proj Wk",
        "v": "v_proj Wv",
        "qkv": "qkv_proj query_key_value c_attn Wqkv in_proj_qkv",
    },
    "mlp": {
        "gate": "gate_proj w1 c_fc_0",
        "up": "up_proj w3 v1 fc1 c_fc c_fc_1 dense_h_to_4h fc_in",
        "down": "down_proj w2",
        "gate_up": "gate_up_proj Wi input_linear",
        "router": "gate router expert_bias e_score_correction_bias moe_statics",
    },
}
"""What modules are called, in families that don't say otherwise. What a branch ends with, and so
`attn.o` and `mlp.down`, a family says by itself."""

_BY_WORD = {
    branch: {word: f"{branch}.{role}" for role, words in roles.items() for word in words.split()}
    for branch, roles in _ROLES.items()
}

_PIECE = re.compile(r"_(bias|blocks|scales)$")
"""How names of tensors end that are not told from their module's by a dot."""


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"[^.]+") + r"(\..*|_bias|_blocks|_scales)?")


def role_of(
    rest: str, branch: Branch, own: Roles, norms: Sequence[str], outputs: Sequence[str]
) -> str | None:
    """`norms`, or the projection that a tensor is of: its weight, its bias, what quantises it.

    `own` goes first, then `norms`, prefixes of norms over the hidden state, and `outputs`, the
    projections that the branch ends with.
    """
    for name, role in own:
        if _pattern(name).fullmatch(rest):
            return role or None
    if rest.startswith(tuple(norms)):
        return NORMS
    if any(_pattern(name).fullmatch(rest) for name in outputs):
        return "attn.o" if branch == "attn" else "mlp.down"
    known = _BY_WORD[branch]
    for word in reversed(rest.split(".")):
        found = known.get(word) or known.get(_PIECE.sub("", word))
        if found is not None:
            return found
    return None


def norm_prefixes(prefixes: Sequence[str]) -> tuple[str, ...]:
    """Those of a branch's prefixes that are norms'."""
    return tuple(one for one in prefixes if re.search(r"(norm|(^|\.)ln_)[^.]*\.?$", one))
