"""Rules of stacks with layers of several kinds: dense or sparse, linear or attending.

Transformers has lists for them, numbers of layers, steps, or periods with an offset. A list is
written; the numbers are solved for those that say the new order.
"""

from typing import Any

from gptailor.checkpoint.families.layer_config import (
    DENSE,
    FULL,
    LINEAR,
    SLIDING,
    SPARSE,
    Config,
    LayerRule,
    Read,
    RuleError,
    Values,
    Write,
    complete,
    derived,
    int_of,
)
from gptailor.checkpoint.files import shown
from gptailor.plan.parts import Branch


def every_nth(period: int, key: str | None = None, *, most: str = LINEAR, nth: str = FULL) -> Read:
    """Each `period`-th layer is of one kind, all others of another; `key` says another period."""

    def derive(config: Config, count: int) -> list[Any]:
        step = int_of(config, key, period, least=1) if key else period
        return [most if (i + 1) % step else nth for i in range(count)]

    return derive


def dense_first(key: str, default: int) -> LayerRule:
    """The first layers are dense, as many as `key` says, and all others sparse; without a list."""

    def read(config: Config, count: int) -> list[Any]:
        first = int_of(config, key, default)
        if (every := config.get("moe_layer_freq", 1)) != 1:
            raise RuleError(f"'moe_layer_freq' is {shown(every)}, which transformers doesn't read")
        return [DENSE if i < first else SPARSE for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        first = list(values).index(SPARSE) if SPARSE in values else len(values)
        for i, value in enumerate(values):
            if value != (DENSE if i < first else SPARSE):
                raise RuleError(
                    f"'{key}' makes the first layers dense and all others sparse, "
                    f"and a dense layer would be L{i}, after the sparse L{first}"
                )
        return {**config, key: first}

    return LayerRule("mlp", "mlp", read, write)


def dense_or_sparse(
    default: int, key: str | None = "first_k_dense_replace", *, stepped: bool = False
) -> LayerRule:
    """A list of dense and sparse layers; without it the first ones are dense.

    Older configurations have their number by `key`, and may have a step.
    """

    def derive(config: Config, count: int) -> list[Any]:
        first = default if key is None else int_of(config, key, default)
        step = int_of(config, "moe_layer_freq", 1, least=1) if stepped else 1
        return [SPARSE if i >= first and i % step == 0 else DENSE for i in range(count)]

    def keep(config: Config, values: Values) -> dict[str, Any]:
        """Say the list by the number of dense layers too, where it can be said so."""
        first = list(values).index(SPARSE) if SPARSE in values else len(values)
        said = DENSE not in values[first:]
        return {**config, key: first} if said and key is not None else dict(config)

    replaces = (key, "moe_layer_freq") if key is not None else ()
    return derived("mlp_layer_types", "mlp", derive, replaces=replaces, keep=keep)


def all_of(kind: str) -> Read:
    """All layers are of one kind."""
    return lambda config, count: [kind] * count


def same(key: str, default: int) -> Read:
    """Each layer has what `key` says of all."""
    return lambda config, count: [config.get(key, default)] * count


def numbered(
    key: str,
    part: Branch,
    name: str,
    kinds: tuple[str, str],
    derive: Read,
    *,
    keep: Write = lambda config, values: dict(config),
) -> LayerRule:
    """The numbers of the layers of the second kind, as a list; all others are of the first.

    `keep` makes the rule that older configurations leave it to agree with the list.
    """

    def read(config: Config, count: int) -> list[Any]:
        numbers = config.get(key)
        if numbers is None:
            return derive(config, count)
        if not isinstance(numbers, list | tuple):
            raise RuleError(f"'{key}' is {shown(numbers)}, and should be a list")
        return [kinds[i in numbers] for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        found = complete(key, values)
        numbers = [i for i, value in enumerate(found) if value == kinds[1]]
        return keep({**config, key: numbers}, found)

    return LayerRule(name, part, read, write)


def periodic(
    period: str,
    offset: str,
    part: Branch,
    name: str,
    kinds: tuple[str, str],
    defaults: tuple[int, int],
) -> LayerRule:
    """Layers whose number leaves the remainder `offset` by `period` are of the second kind."""

    def places(step: int, first: int, count: int) -> list[Any]:
        return [kinds[i % step == first] for i in range(count)]

    def read(config: Config, count: int) -> list[Any]:
        step = int_of(config, period, defaults[0], least=1)
        return places(step, int_of(config, offset, defaults[1]), count)

    def write(config: Config, values: Values) -> dict[str, Any]:
        wanted, count = complete(period, values), len(values)
        given = (config.get(period, defaults[0]), config.get(offset, defaults[1]))
        steps = ((step, first) for step in range(1, count + 2) for first in range(step))
        for step, first in (given, *steps):
            if places(step, first, count) == wanted:
                return {**config, period: step, offset: first}
        which = ", ".join(f"L{i}" for i, kind in enumerate(wanted) if kind == kinds[1])
        raise RuleError(f"no '{period}' and '{offset}' make only {which} '{kinds[1]}'")

    return LayerRule(name, part, read, write)


def cycled(key: str, default: tuple[str, ...]) -> LayerRule:
    """RecurrentGemma: a list of kinds, which is begun again where it ends."""

    def read(config: Config, count: int) -> list[Any]:
        kinds = config.get(key, default)
        if not isinstance(kinds, list | tuple) or not kinds:
            raise RuleError(f"'{key}' is {shown(kinds)}, and should be a list")
        return [kinds[i % len(kinds)] for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        return {**config, key: complete(key, values)}

    return LayerRule("layer_types", "attn", read, write)


def attending(types: LayerRule, kinds: tuple[str, ...] = (FULL, SLIDING)) -> LayerRule:
    """The kinds of layers of a hybrid, one of which has to attend: its cache counts by that."""

    def write(config: Config, values: Values) -> dict[str, Any]:
        if not any(value in kinds for value in values):
            reason = "transformers can't generate from such a hybrid"
            raise RuleError(f"no layer that attends would be left, and {reason}")
        return types.write(config, values)

    return LayerRule(types.name, types.part, types.read, write)
