"""Rules that a plan must keep against its models, from headers and configurations alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from gptailor.checkpoint.families.layout import incompatible
from gptailor.checkpoint.models import Opened, used
from gptailor.checks.layers import FITTING, QUANTISED
from gptailor.checks.vocabulary import REST_RULES, every_tokenizer_can_be_read
from gptailor.plan.faults import Fault, Hit, errors, joined_faults, locate
from gptailor.plan.plan import Drop, Layer, Plan, Scale
from gptailor.plan.walk import layer_recipes, named_models
from gptailor.program.compile import Checked


def check_models(plan: Plan, models: Mapping[str, Opened]) -> list[Fault]:
    """The faults of a plan against its models; those that rest on others are left out."""
    if "base" not in models:
        return []
    checked = Checked(plan, models)
    faults = locate((f for rule in MODEL_RULES for f in rule(checked)), plan.origin)
    fitting = FITTING
    if plan.bridges:
        from gptailor.checks.bridges import BRIDGING  # noqa: PLC0415 (few plans have one)

        fitting += BRIDGING
    for rules in ((*QUANTISED, every_tokenizer_can_be_read), (*fitting, *REST_RULES)):
        if not errors(faults):
            faults += locate((f for rule in rules for f in rule(checked)), plan.origin)
    return faults


# ------------------------------------------------------------------------------------------- rules


def every_position_exists(checked: Checked) -> Iterator[Fault]:
    """Positions are layers of the base."""
    plan, count = checked.plan, checked.count
    if plan.stack is not None:
        return

    def beyond(name: str, many: bool) -> Fault:
        are = "are" if many else "is"
        message = f"{name} {are} beyond the base, which has {count} layers"
        return Fault("M201", message, help=f"the last layer is L{count - 1}")

    placed: tuple[tuple[str, tuple[Layer | Drop | Scale, ...]], ...] = (
        ("layers", plan.layers),
        ("drops", plan.drops),
        ("scales", plan.scales),
    )
    for name, entries in placed:
        hits = [Hit(e.position, (name, i)) for i, e in enumerate(entries) if e.position >= count]
        yield from joined_faults(plan.origin, hits, beyond)
    for i, choice in enumerate(plan.drop_any):
        if choice.among and choice.among[-1] >= count:
            yield replace(beyond(f"L{choice.among[-1]}", False), at=("drop_any", i, "among"))
    for i, bridge in enumerate(plan.bridges):
        if bridge.after is not None and bridge.after >= count:
            yield replace(beyond(f"L{bridge.after}", False), at=("bridges", i, "after"))


def every_source_layer_exists(checked: Checked) -> Iterator[Fault]:
    """A source's layer is a layer of its model."""
    for at, recipe in layer_recipes(checked.plan):
        for inner, name, layer in named_models(recipe):
            model = checked.models.get(name)
            if model is None or layer is None or layer < model.layout.count:
                continue
            if at[0] == "layers" and layer >= checked.count and name == "base":
                here = checked.plan.layers[int(at[1])].position
                if here == layer:
                    continue  # the position is reported already
            count = model.layout.count
            where = inner[: inner.index("model")] if "model" in inner else ()
            message = f"L{layer} is beyond the model '{name}', which has {count} layers"
            yield Fault("M202", message, (*at, *where, "layer"), f"its last layer is L{count - 1}")


def something_remains(checked: Checked) -> Iterator[Fault]:
    """The output has a layer."""
    plan = checked.plan
    fixed = {drop.position for drop in plan.drops if not drop.maybe}
    if plan.stack is None and fixed >= set(range(checked.count)):
        message = f"all {checked.count} layers are dropped, and nothing remains"
        yield Fault("M203", message, ("drops", len(plan.drops) - 1))
    gone = len(fixed)
    for i, choice in enumerate(plan.drop_any):
        gone += choice.count
        if gone >= checked.count and choice.count > 0:
            message = f"dropping {choice.count} more of {checked.count} layers leaves nothing"
            yield Fault("M203", message, ("drop_any", i, "count"))


def every_model_goes_with_the_base(checked: Checked) -> Iterator[Fault]:
    """Layers can move between models that compute with them in the same way."""
    base = checked.models["base"]
    if base.layout.notice:
        yield Fault("M301", base.layout.notice, ("models", "base", "source"), severity="warning")
    for name, model in checked.models.items():
        if name == "base":
            continue
        at = ("models", name, "source")
        if model.layout.model_type != base.layout.model_type:
            ours, theirs = base.layout.model_type, model.layout.model_type
            yield Fault("M205", f"'{name}' is a '{theirs}' model, and the base a '{ours}' one", at)
            continue
        for d in incompatible(base.layout, base.config, model.config):
            ours, theirs = _said(d.base_value), _said(d.other_value)
            message = f"'{name}' has {d.key} {theirs}, and the base {ours}"
            if d.severity == "fault":
                yield Fault("M206", message, at, "its layers would compute something else here")
            else:
                help_ = "the output computes with the base's"
                yield Fault("M302", message, at, help_, severity="warning")


def _said(value: object) -> str:
    if value is None:
        return "unset"
    return f"'{value}'" if isinstance(value, str) else f"{value}"


def every_model_is_used(checked: Checked) -> Iterator[Fault]:
    """A declared model that nothing names is a slip."""
    plan = checked.plan
    named = used(plan) | {model.on for model in plan.models.values()}
    for objective in plan.search.objectives if plan.search else ():
        named.add(str(objective.arguments.get("from")))
    for name in plan.models:
        if name not in named:
            message = f"the model '{name}' is declared and never used"
            yield Fault("M303", message, ("models", name, "name"), severity="warning")


MODEL_RULES: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    every_position_exists,
    every_source_layer_exists,
    something_remains,
    every_model_goes_with_the_base,
    every_model_is_used,
)
