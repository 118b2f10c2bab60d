"""mergekit's merge methods, a row each: how it is read as a recipe, and written from one."""

from gptailor.convert.mergekit import recipes as r
from gptailor.convert.mergekit import writing as w
from gptailor.convert.mergekit.mixture import MergekitMethod

_TASK = ("normalize", "rescale", "int8_mask", "lambda")
_TRIMMED = ("weight", "density")
_CRUMBS = ("weight", "density", "gamma")
_RANKED = ("weight", "density", "epsilon")
_QUARTILES = (
    "mergekit computes divergences in float32, where rounding rules them, and draws a million "
    "entries for the quartiles: near the threshold gptailor chooses otherwise"
)
_ON_A_LINE = "where |cosθ| is above 0.9995 mergekit merges linearly, gptailor on the arc"
_COUNTS = (
    "mergekit keeps ⌊density·n⌋ entries of a tensor, gptailor the nearest whole number, and of "
    "equal entries all or none; where task vectors cancel exactly mergekit's elected sign is +, "
    "and gptailor keeps the base's entry"
)
_DRAWS = "other entries are dropped: gptailor's draws follow a seed, mergekit's don't"
_NEGATIVE = (
    "where the task vectors' mean cosine is negative mergekit steps away from all sources, "
    "gptailor stays at the base"
)
_ACTIVE = {"epsilon": 1e-5}
_STOPS = "mergekit stops after max_iter steps, gptailor where the mean no longer moves"

MERGEKIT_METHODS: dict[str, MergekitMethod] = {row.name: row for row in (
    MergekitMethod("passthrough", ("scale",), (), r.read_passthrough, w.write_nothing),
    MergekitMethod("linear", ("weight",), ("normalize",), r.read_linear, w.write_linear),
    MergekitMethod("slerp", (), ("t",), r.read_slerp, w.write_slerp, "first", _ON_A_LINE),
    MergekitMethod("nuslerp", ("weight",), ("nuslerp_flatten", "nuslerp_row_wise"), r.read_nuslerp,
                   w.write_nuslerp, "optional"),
    MergekitMethod("multislerp", ("weight",), ("normalize_weights", "eps"), r.read_multislerp,
                   w.write_multislerp, "optional"),
    MergekitMethod("nearswap", (), ("t",), r.read_nearswap, w.write_nearswap, "first"),
    MergekitMethod("arcee_fusion", (), (), r.read_arcee_fusion, None, "first", _QUARTILES),
    MergekitMethod("task_arithmetic", _TRIMMED, _TASK, r.read_task_vectors, w.write_task_vectors,
                   "beside"),
    MergekitMethod("ties", _TRIMMED, _TASK, r.read_task_vectors, w.write_task_vectors, "beside",
                   _COUNTS),
    MergekitMethod("dare_linear", _TRIMMED, _TASK, r.read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("dare_ties", _TRIMMED, _TASK, r.read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("della_linear", _RANKED, _TASK, r.read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("della", _RANKED, _TASK, r.read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("breadcrumbs", _CRUMBS, _TASK, r.read_task_vectors, w.write_task_vectors,
                   "beside", _COUNTS),
    MergekitMethod("breadcrumbs_ties", _CRUMBS, _TASK, r.read_task_vectors, w.write_task_vectors,
                   "beside", _COUNTS),
    MergekitMethod("sce", (), ("select_topk", "int8_mask"), r.read_sce, w.write_sce, "beside",
                   _COUNTS),
    MergekitMethod("ram", (), ("epsilon",), r.read_ram, w.write_ram, "beside", "", _ACTIVE),
    MergekitMethod("ramplus_tl", (), ("r", "alpha", "epsilon"), r.read_ram, w.write_ram, "beside",
                   "", _ACTIVE),
    MergekitMethod("model_stock", (), ("filter_wise",), r.read_model_stock, w.write_model_stock,
                   "beside", _NEGATIVE),
    MergekitMethod("karcher", (), ("max_iter", "tol"), r.read_karcher, w.write_karcher,
                   differs=_STOPS),
)}  # fmt: skip
"""All methods of mergekit 0.1.5."""

_CALLED = {"ram_plus": "ramplus_tl"}
"""What mergekit calls methods that have another name here."""


def same_method(name: str) -> MergekitMethod | None:
    """mergekit's method that gives what ours of this name does, if it has one."""
    method = MERGEKIT_METHODS.get(_CALLED.get(name, name))
    return method if method is not None and method.write is not None else None
