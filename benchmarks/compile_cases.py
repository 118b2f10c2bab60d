"""Plans of `benchmarks/compile.py` for both tools, with their targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MB = 10**6

Document = dict[str, object]


@dataclass(frozen=True)
class Targets:
    """The highest ratio to `cp`, the lowest speed-up over mergekit, the highest peak memory."""

    copies: float | None
    faster: float
    peak: int


@dataclass(frozen=True)
class Case:
    """A plan for models of any number of layers from 8 on."""

    name: str
    models: tuple[str, ...]
    statements: Callable[[int], str]
    document: Callable[[int, Path], Document]
    targets: Targets
    size: float = 2.2e9
    """Bytes of each model at scale 1."""
    grows: bool = False
    """True if memory is compared over models of several sizes."""

    def plan(self, layers: int, folder: Path) -> str:
        """Return the plan's text, for models in folders of their names."""
        declared = [f'model {name} = "{folder / name}"\n' for name in self.models]
        return "tailor 1\n" + "".join(declared) + self.statements(layers)


def cases() -> tuple[Case, ...]:
    """Return all cases in the table's order."""
    moving = Targets(copies=1.2, faster=2, peak=300 * MB)
    task_targets = Targets(copies=4, faster=5, peak=300 * MB)
    models = ("base", "math", "code")
    task = {"normalize": False}
    return (
        Case("layers only moved", ("base", "math"), _moved, _moved_by_mergekit, moving, grows=True),
        Case(
            "task arithmetic of one",
            ("base", "math"),
            _everywhere("math by task_arithmetic(0.7)"),
            _merged("task_arithmetic", {"math": {"weight": 0.7}}, task),
            task_targets,
        ),
        Case(
            "task arithmetic of two",
            models,
            _everywhere("math, code by task_arithmetic(0.7, 0.3)"),
            _merged("task_arithmetic", {"math": {"weight": 0.7}, "code": {"weight": 0.3}}, task),
            task_targets,
            grows=True,
        ),
        Case(
            "linear of two",
            models,
            _everywhere("math, code by linear(0.6, 0.4)"),
            _merged("linear", {"math": {"weight": 0.6}, "code": {"weight": 0.4}}, task, base=None),
            task_targets,
        ),
        Case(
            "slerp of two",
            models,
            _everywhere("math, code by slerp(0.3)"),
            _merged("slerp", {"math": {}, "code": {}}, {"t": 0.3}, base="math"),
            Targets(copies=6, faster=8, peak=300 * MB),
            grows=True,
        ),
        Case(
            "ties of three",
            (*models, "chat"),
            _everywhere("math, code, chat by ties(density=0.5, scale=1.0)"),
            _merged(
                "ties",
                {name: {"weight": 1.0, "density": 0.5} for name in ("math", "code", "chat")},
                {"normalize": True, "int8_mask": False},
            ),
            Targets(copies=None, faster=8, peak=300 * MB),
            size=1.6e9,  # 0.8 B parameters
        ),
    )


def _everywhere(recipe: str) -> Callable[[int], str]:
    """Return the plan of one recipe for all tensors."""

    def statements(layers: int) -> str:
        parts = (f"L0..L{layers - 1}", "embed", "norm", "head")
        return "".join(f"{part} from {recipe}\n" for part in parts)

    return statements


def _moved(layers: int) -> str:
    """Return a plan that takes layers of another model, moves two and drops one."""
    middle = layers // 2
    return (
        f"L1..L{middle - 2} from math\n"
        f"L{middle} = L{middle + 1} base\n"
        f"L{middle + 1} = L{middle} base\n"
        f"drop L{layers - 2}\n"
    )


def _moved_by_mergekit(layers: int, folder: Path) -> Document:
    middle = layers // 2
    pieces = (
        ("base", 0, 1),
        ("math", 1, middle - 1),
        ("base", middle - 1, middle),
        ("base", middle + 1, middle + 2),
        ("base", middle, middle + 1),
        ("base", middle + 2, layers - 2),
        ("base", layers - 1, layers),
    )
    slices = [
        {"sources": [{"model": str(folder / name), "layer_range": [start, end]}]}
        for name, start, end in pieces
        if start < end
    ]
    return {"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"}


def _merged(
    method: str,
    models: Mapping[str, Mapping[str, float]],
    parameters: Mapping[str, object],
    base: str | None = "base",
) -> Callable[[int, Path], Document]:
    """Return mergekit's configuration of this plan, as in its README."""

    def document(layers: int, folder: Path) -> Document:
        del layers  # all of them
        sources = [{"model": str(folder / n), "parameters": dict(p)} for n, p in models.items()]
        made: Document = {"merge_method": method, "models": sources, "dtype": "bfloat16"}
        made["parameters"] = dict(parameters)
        if base is not None:
            made["base_model"] = str(folder / base)
        return made

    return document
