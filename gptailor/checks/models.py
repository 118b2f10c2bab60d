"""The rules of a plan against its models, in stages; models that no folder holds."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from gptailor.checkpoint.families.compatibility import incompatible
from gptailor.checkpoint.families.layout import Layout
from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.models import Opened, Opener, is_local, is_plan, taken, used
from gptailor.checks.rule import rule, rules_of, run_rules
from gptailor.plan.faults import (
    Fault,
    Hit,
    Place,
    declared_place,
    errors,
    joined_faults,
    listed,
    locate,
)
from gptailor.plan.model_dependencies import needed
from gptailor.plan.plan import (
    BY_LAYER,
    OVERLAY,
    Bridge,
    DropAny,
    DropWindow,
    Model,
    Open,
    Plan,
    Repeat,
    RepeatWindow,
    Take,
    TemplateOf,
    count_ends,
    is_at_url,
)
from gptailor.plan.sites import (
    compared_models,
    drops_by_choice,
    enumerated,
    layer_recipes,
    named_models,
    open_choices,
)
from gptailor.plan.written_out import declared_places, idle_others
from gptailor.program.compile import predictors_lost
from gptailor.program.nested_models import (
    any_closing,
    dequantised,
    made_model,
    named_in,
    whole_plan,
)
from gptailor.program.sources import Checked


def check_models(checked: Checked) -> list[Fault]:
    """Return the faults of a plan against its models, without consequential faults."""
    faults: list[Fault] = []
    for stage in (1, 2, 3):
        if not errors(faults):
            faults += locate(run_rules(MODEL_RULES, checked, stage), checked.plan.origin)
    declared = checked.resolved.declared
    places = declared_places(declared, checked.count)
    idle = locate(run_rules(MODEL_RULES, checked, stage=0), declared.origin)
    return idle + [replace(fault, at=declared_place(fault.at, places)) for fault in faults]


def check_positions(plan: Plan, models: Mapping[str, Opened]) -> list[Fault]:
    """Return the faults of layers beyond these models, for a plan that may have other faults."""
    if "base" not in models:
        return []
    count = models["base"].layout.count
    faults = [*_positions_beyond(plan, count), *_source_layers_beyond(plan, models)]
    return locate(faults, plan.origin)


def check_local_models(plan: Plan, declared: Mapping[str, Model]) -> list[Fault]:
    """Return the faults of local models that can't be opened, and of layers beyond these models.

    This is for a plan that has faults by itself: the Hub is not asked.
    """
    opener = Opener(plan, declared)
    opened = {
        name: opener.model(name) for name in sorted(used(plan)) if _is_folder(plan.models[name])
    }
    local = {name: model for name, model in opened.items() if model is not None}
    return locate(opener.faults + check_positions(plan, local), plan.origin)


def check_compared_models(plan: Plan, opened: Collection[str]) -> list[Fault]:
    """Return the faults of local models that scores are compared with and that no output needs.

    `opened` are the models that were opened for the output.
    """
    names = {name for _, name in compared_models(plan)} & plan.models.keys()
    opener = Opener(plan, plan.models)
    for name in sorted(names - used(plan) - {*opened}):
        if _is_folder(plan.models[name]):
            opener.model(name)
    return locate(opener.faults, plan.origin)


def _is_folder(model: Model) -> bool:
    """Return whether a model is a folder on this machine, without a recipe or an adapter."""
    alone = model.made is None and model.on is None and not is_plan(model)
    return alone and is_local(model.source) and not is_at_url(model.source)


# -------------------------------------------------------------------------------------------- rules


@rule("M314", stage=0)
def _others_have_positions(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for each `others` without a position."""
    for at in idle_others(checked.resolved.declared, checked.count):
        message = "'others' has no effect: other statements set or drop all layers"
        yield Fault("M314", message, at, "remove it", severity="warning")


@rule("M201", stage=1)
def _every_position_exists(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each position beyond the base's layers."""
    yield from _positions_beyond(checked.plan, checked.count)


def _positions_beyond(plan: Plan, count: int) -> Iterator[Fault]:
    """Yield a fault for each range of positions beyond `count` layers."""
    if plan.stack is not None:
        return

    message = f"is beyond the base, which has {count} layers"
    beyond = Fault("M201", message, help=f"the last layer is L{count - 1}")
    for name in OVERLAY:
        hits = [
            Hit(position, (*at, *_LAST.get(type(entry), ())))
            for at, entry in enumerated(plan, name)
            for position in entry.positions[-1:]
            if position >= count
        ]
        for several in [hits] if name in BY_LAYER else zip(hits):
            yield from joined_faults(plan.origin, several, beyond)
    learning = enumerate(plan.heal.layers if plan.heal is not None else ())
    hits = [Hit(position, ("heal", "layers", i)) for i, position in learning if position >= count]
    yield from joined_faults(plan.origin, hits, beyond)


_LAST: dict[type[Open], Place] = {
    DropAny: ("among",),
    DropWindow: ("among",),
    RepeatWindow: ("among",),
    Repeat: ("last",),
    Bridge: ("after",),
}
"""The field of an entry that has its last position, if that isn't the whole entry."""


@rule("M202", stage=1)
def _every_source_layer_exists(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each source's layer beyond the layers of its model."""
    yield from _source_layers_beyond(checked.plan, checked.models)


def _source_layers_beyond(plan: Plan, models: Mapping[str, Opened]) -> Iterator[Fault]:
    """Yield a fault for each range of a source's layers beyond its model, if that is opened."""
    beyond: dict[str, list[Hit]] = {}
    for at, recipe in layer_recipes(plan):
        for inner, name, layer in named_models(recipe):
            model = models.get(name)
            if model is None or layer is None or layer < model.layout.count:
                continue
            if at[0] == "layers" and name == "base":
                position = plan.layers[int(at[1])].position
                if position == layer:
                    continue  # the position is reported already
            where = inner[: inner.index("model")] if "model" in inner else ()
            beyond.setdefault(name, []).append(Hit(layer, (*at, *where, "layer")))

    for name, hits in beyond.items():
        count = models[name].layout.count
        message = f"is beyond the model '{name}', which has {count} layers"
        fault = Fault("M202", message, help=f"its last layer is L{count - 1}")
        yield from joined_faults(plan.origin, hits, fault)


@rule("M203", stage=1)
def _something_remains(checked: Checked) -> Iterator[Fault]:
    """Yield a fault if drops may leave no layer."""
    plan = checked.plan
    fixed = {drop.position for drop in plan.drops if not drop.maybe}
    if plan.stack is None and fixed >= set(range(checked.count)):
        message = f"all {checked.count} layers are dropped"
        yield Fault("M203", message, ("drops", len(plan.drops) - 1), "keep at least one layer")
    dropped = len(fixed)
    for at, choice in drops_by_choice(plan):
        most = count_ends(choice.count)[1]
        dropped += most
        if dropped >= checked.count and most > 0:
            message = f"the drops can remove all {checked.count} layers"
            yield Fault("M203", message, (*at, "count"), "keep at least one layer")


@rule("M205", "M206", "M301", "M302", stage=1)
def _every_model_goes_with_the_base(checked: Checked) -> Iterator[Fault]:
    """Yield a fault or a warning for each model that computes otherwise than the base."""
    base = checked.models["base"]
    source_models = taken(checked.plan)
    if base.layout.notice:
        yield Fault("M301", base.layout.notice, ("models", "base", "source"), severity="warning")
    yield from _vain_keys(checked)
    for name, model in checked.models.items():
        if name == "base" or name not in checked.plan.models:
            continue
        at = ("models", name, "source")
        if model.layout.architecture != base.layout.architecture:
            base_value, value = _kind(base.layout), _kind(model.layout)
            message = f"'{name}' is {value} model, but the base is {base_value} model"
            yield Fault("M205", message, at, "use a fine-tune of the base, or remove it")
            continue
        if name not in source_models:
            continue  # it only teaches
        for difference in incompatible(base.layout, base.config, model.config):
            key, base_value, value = _first_difference(
                difference.key, difference.base_value, difference.other_value
            )
            message = f"'{name}' has {key} {value}, but the base has {base_value}"
            if difference.severity == "fault":
                yield Fault(
                    "M206", message, at, "use a model with the base's setting, which the output has"
                )
            else:
                help_ = "the output has the base's setting"
                yield Fault("M302", message, at, help_, severity="warning")


def _vain_keys(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for each key that a file without a proof compares, and that no model has."""
    base = checked.models["base"]
    found, kind = base.checkpoint.family, base.layout.architecture
    if found is None or found.file.proof is not None:
        return
    configs = [m.config for m in checked.models.values() if m.layout.architecture == kind]
    for key in found.file.agree:
        absent = all(key not in each and found.file.value(key, each) is None for each in configs)
        if absent and key not in found.file.why:
            message = (
                f"no model has the key {quoted(key)} under 'agree' in the family file {found.path}"
            )
            help_ = "correct or remove it, or explain it under 'why'"
            yield Fault("M301", message, ("models", "base", "source"), help_, severity="warning")


def _kind(layout: Layout) -> str:
    """Return a model type in words, with its language model's type if that is another."""
    inner = "" if layout.text_type == layout.model_type else f" ('{layout.text_type}')"
    return f"a '{layout.model_type}'{inner}"


def _first_difference(key: str, base_value: object, value: object) -> tuple[str, str, str]:
    """Return the first key, within objects, at which two values differ, and both in words."""
    if isinstance(base_value, dict) and isinstance(value, dict):
        for inner in (*base_value, *value):
            if base_value.get(inner) != value.get(inner):
                at = f"{key}.{inner}"
                return _first_difference(at, base_value.get(inner), value.get(inner))
    return key, _value_in_words(base_value), _value_in_words(value)


def _value_in_words(value: object) -> str:
    """Return a configuration's value as messages show it."""
    if value is None:
        return "unset"
    return quoted(value) if isinstance(value, str) else shown(value)


@rule("M318")
def _predictors_stay(checked: Checked) -> Iterator[Fault]:
    """Yield a warning if the output loses the base's layers that predict further tokens."""
    base = checked.base
    if not base.predicting or any(slot.dropped == "maybe" for slot in checked.resolved.slots):
        return
    if (why := predictors_lost(checked)) is not None:
        message = f"the output lacks the base's layers for multi-token prediction (MTP): {why}"
        help_ = "vLLM and SGLang can't use MTP for speculative decoding of the output"
        yield Fault("M318", message, ("models", "base", "source"), help_, severity="warning")


@rule("M319")
def _hidden_states_fit_float16(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for an output in float16 if its hidden states exceed that dtype."""
    layout, config, stated = checked.base.layout, checked.base.config, checked.plan.dtype
    dtype = stated or config.get("dtype") or config.get("torch_dtype")
    if layout.family.overflows_float16 and dtype == "float16":
        message = (
            f"hidden states of a '{layout.text_type}' model overflow in float16, so its "
            "predictions become NaN"
        )
        at: Place = ("dtype",) if stated else ("models", "base", "source")
        yield Fault("M319", message, at, "write 'dtype bfloat16'", severity="warning")


@rule("M303", stage=1)
def _every_model_is_used(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for the declared models that nothing names."""
    plan = checked.plan
    used_names = used(plan) | {model.on for model in plan.models.values()}
    used_names |= {name for _, name in compared_models(plan)}
    idle = [name for name in plan.models if name not in used_names]
    if idle:
        names = listed(f"'{name}'" for name in idle)
        message = f"the model {names} is never used"
        if len(idle) > 1:
            message = f"the models {names} are never used"
        help_ = "remove it" if len(idle) == 1 else "remove them"
        yield Fault("M303", message, ("models", idle[0], "name"), help_, severity="warning")


# ---------------------------------------------------------------------- models that no folder holds


def checked_made_model(
    plan: Plan, name: str, opened: Mapping[str, Opened]
) -> tuple[Opened | None, list[Fault]]:
    """Return a model that is made of models, and its faults against these, at its place."""
    recipe = plan.models[name].made
    if recipe is None or "base" not in opened:
        return None, []
    inner = whole_plan(plan, recipe)
    if not named_in(inner) <= opened.keys():
        return None, []  # a fault already
    checked = Checked.of(inner, {n: opened[n] for n in named_in(inner)})
    checked, inner_faults = dequantised(checked)
    if not errors(inner_faults):
        inner_faults = inner_faults + check_models(checked)
    place: Place = ("models", name, "made")
    faults: dict[object, Fault] = {}
    for fault in inner_faults:
        if fault.at[:1] in (("models",), ("tokenizer",)):
            faults.setdefault((fault.code, fault.at, fault.message), fault)
        else:  # one for all layers
            faults.setdefault(fault.code, replace(fault, at=place))
    if errors(faults.values()):
        return None, [*faults.values()]
    closed = any_closing(recipe) if open_choices(plan) else recipe
    models = {**plan.models, name: Model(made=closed)}
    try:
        model = made_model(plan.model_copy(update={"models": models}), name, opened)
    except CheckpointError as error:
        return None, [Fault(error.code, error.message, place, error.help)]
    return model, [*faults.values()]


def why_no_model(plan: Plan, name: str, inner: Plan) -> Iterator[tuple[str, str]]:
    """Yield each reason why a plan's output can't be a model of another plan, and a remedy."""
    compiled = "compile it, and name the folder"
    if count := open_choices(inner):
        choices = "1 open choice" if count == 1 else f"{count} open choices"
        yield f"has {choices}, expected a closed plan", "'gptailor search' closes them"
    if inner.tokenizer is not None and not isinstance(inner.tokenizer, Take):
        yield "has a tokenizer that only its compiled folder has", compiled
    tells = {"base"} if plan.tokenizer is None else set()
    if isinstance(plan.tokenizer, Take):
        tells = {n for _, n, _ in named_models(plan.tokenizer)}
    tells |= {plan.chat_template.model} if isinstance(plan.chat_template, TemplateOf) else set()
    if inner.chat_template is not None and name in needed(plan, tells):
        yield "has a chat template that only its compiled folder has", compiled


MODEL_RULES = rules_of(
    "layers", "models", "repairs", "fit_sizes", "tokenizer",
    "embedding_norm_head",
)  # fmt: skip
"""Rules against the models; a stage runs if earlier stages yield no errors.

The faults of stage 0 have places in the plan as declared, before it is resolved."""
