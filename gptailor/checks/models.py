"""Rules that a plan must keep against its models, from headers, configurations and tokenizers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from gptailor.checkpoint.families.layout import Layout, incompatible
from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.folder import CONFIG, generation_config, processor_files, tokenizer_files
from gptailor.checkpoint.foreign_code import files_with_code, names_code
from gptailor.checkpoint.models import Opened, taken, used
from gptailor.checkpoint.vocabulary import (
    Vocabulary,
    counted,
    relation,
    same_files,
    shown_tokens,
)
from gptailor.checks.ends import the_ends_are_meant
from gptailor.checks.layers import FITTING, SMALL, VISION
from gptailor.plan import layers as outline
from gptailor.plan.faults import Fault, Hit, Place, errors, joined_faults, listed, locate
from gptailor.plan.plan import Drop, Layer, Plan, Repeat, Scale, count_ends
from gptailor.plan.walk import drops_by_choice, layer_recipes, named_models
from gptailor.plan.windows import stretch_of
from gptailor.plan.wishes import compared_models
from gptailor.plan.written import idle_others, said_place
from gptailor.program.rows import can_be_aligned, has_rows
from gptailor.program.sources import Checked, needs_base


def check_models(checked: Checked) -> list[Fault]:
    """Return the faults of a plan against its models, without those that follow from others."""
    declared, count = checked.resolved.declared, checked.count
    idle = locate(_without_positions(declared, count), declared.origin)
    declared_place = said_place(declared, count)
    return idle + [replace(fault, at=declared_place(fault.at)) for fault in _faults(checked)]


def check_positions(plan: Plan, models: Mapping[str, Opened]) -> list[Fault]:
    """Return the faults of layers beyond these models, for a plan that may have other faults."""
    if "base" not in models:
        return []
    count = models["base"].layout.count
    faults = [*_positions_beyond(plan, count), *_source_layers_beyond(plan, models)]
    return locate(faults, plan.origin)


def _faults(checked: Checked) -> list[Fault]:
    plan = checked.plan
    faults = locate((f for rule in _MODEL_RULES for f in rule(checked)), plan.origin)
    fitting = FITTING
    if any(layer.part not in {None, *outline.PARTS} for layer in plan.layers):
        from gptailor.checks.parts import FINER

        fitting += FINER
    if plan.bridges:
        from gptailor.checks.bridges import BRIDGING

        fitting += BRIDGING
    fitting += _of_rare_statements(plan)
    fitting += VISION if checked.base.layout.wrapped else ()
    if plan.tokenizer == "union":
        from gptailor.checks.tokenizer import UNITED

        fitting += UNITED
    if plan.chat_template is not None:
        from gptailor.checks.tokenizer import TEMPLATE

        fitting += TEMPLATE
    for rules in ((*SMALL, every_tokenizer_can_be_read), (*fitting, *_REST_RULES)):
        if not errors(faults):
            faults += locate((f for rule in rules for f in rule(checked)), plan.origin)
    return faults


def _of_rare_statements(plan: Plan) -> tuple[Callable[[Checked], Iterable[Fault]], ...]:
    found: tuple[Callable[[Checked], Iterable[Fault]], ...] = ()
    if plan.repeats:
        from gptailor.checks.repeats import AGAIN

        found += AGAIN
    if plan.heal is not None:
        from gptailor.checks.heal import HEALING

        found += HEALING
    return found


# ------------------------------------------------------------------------------------------- rules


def _without_positions(plan: Plan, count: int) -> Iterator[Fault]:
    """`others` are of some position, if they are anything."""
    for at in idle_others(plan, count):
        message = "there are no others: all positions are decided or dropped"
        yield Fault("M314", message, at, severity="warning")


def every_position_exists(checked: Checked) -> Iterator[Fault]:
    """Positions are layers of the base."""
    yield from _positions_beyond(checked.plan, checked.count)


def _positions_beyond(plan: Plan, count: int) -> Iterator[Fault]:
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
    for last, at in _named_last(plan):
        if last >= count:
            yield replace(beyond(f"L{last}", False), at=at)
    learning = enumerate(plan.heal.layers if plan.heal is not None else ())
    hits = [Hit(position, ("heal", "layers", i)) for i, position in learning if position >= count]
    yield from joined_faults(plan.origin, hits, beyond)


def _named_last(plan: Plan) -> Iterator[tuple[int, Place]]:
    """The last position that each statement names that isn't a list of entries, and its place."""
    for at, choice in drops_by_choice(plan):
        yield max(choice.among, default=0), (*at, "among")
    for i, repeat in enumerate(plan.repeats):
        name = "last" if isinstance(repeat, Repeat) else "among"
        yield stretch_of(repeat)[1], ("repeats", i, name)
    for i, bridge in enumerate(plan.bridges):
        if bridge.after is not None:
            yield bridge.after, ("bridges", i, "after")


def every_source_layer_exists(checked: Checked) -> Iterator[Fault]:
    """A source's layer is a layer of its model."""
    yield from _source_layers_beyond(checked.plan, checked.models)


def _source_layers_beyond(plan: Plan, models: Mapping[str, Opened]) -> Iterator[Fault]:
    for at, recipe in layer_recipes(plan):
        for inner, name, layer in named_models(recipe):
            model = models.get(name)
            if model is None or layer is None or layer < model.layout.count:
                continue
            if at[0] == "layers" and name == "base":
                here = plan.layers[int(at[1])].position
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
    for at, choice in drops_by_choice(plan):
        most = count_ends(choice.count)[1]
        gone += most
        if gone >= checked.count and most > 0:
            message = f"dropping {most} more of {checked.count} layers leaves nothing"
            yield Fault("M203", message, (*at, "count"))


def every_model_goes_with_the_base(checked: Checked) -> Iterator[Fault]:
    """Layers can move between models that compute with them in the same way."""
    base = checked.models["base"]
    named = taken(checked.plan)
    if base.layout.notice:
        yield Fault("M301", base.layout.notice, ("models", "base", "source"), severity="warning")
    for name, model in checked.models.items():
        if name == "base" or name not in checked.plan.models:
            continue
        at = ("models", name, "source")
        if model.layout.architecture != base.layout.architecture:
            ours, theirs = _kind(base.layout), _kind(model.layout)
            yield Fault("M205", f"'{name}' is {theirs} model, and the base {ours} one", at)
            continue
        if name not in named:
            continue  # it only teaches
        for d in incompatible(base.layout, base.config, model.config):
            ours, theirs = _said(d.base_value), _said(d.other_value)
            message = f"'{name}' has {d.key} {theirs}, and the base {ours}"
            if d.severity == "fault":
                yield Fault("M206", message, at, "its layers would compute something else here")
            else:
                help_ = "the output computes with the base's"
                yield Fault("M302", message, at, help_, severity="warning")


def _kind(layout: Layout) -> str:
    inner = "" if layout.text_type == layout.model_type else f" (with '{layout.text_type}' in it)"
    return f"a '{layout.model_type}'{inner}"


def _said(value: object) -> str:
    if value is None:
        return "unset"
    return quoted(value) if isinstance(value, str) else shown(value)


def every_model_is_used(checked: Checked) -> Iterator[Fault]:
    """A declared model that nothing names is a slip."""
    plan = checked.plan
    named = used(plan) | {model.on for model in plan.models.values()}
    named |= {name for _, name in compared_models(plan.search)}
    idle = [name for name in plan.models if name not in named]
    if idle:
        names = listed(f"'{name}'" for name in idle)
        message = f"the model {names} is declared and never used"
        if len(idle) > 1:
            message = f"the models {names} are declared and never used"
        yield Fault("M303", message, ("models", idle[0], "name"), severity="warning")


# --------------------------------------------------------- the rest of a model, and its tokenizer


def the_rest_fits(checked: Checked) -> Iterator[Fault]:
    """Embedding, norm and head have the base's shapes, but for the number of tokens."""
    for where in ("embed", "norm", "head"):
        recipe = checked.plan.rest(where)
        for at, name, _ in named_models(recipe) if recipe is not None else ():
            if name in checked.models:
                yield from _rest_misfit(checked, where, (where, *at), checked.models[name])


def _rest_misfit(checked: Checked, where: str, at: Place, model: Opened) -> Iterator[Fault]:
    theirs, ours = model.rest(where), checked.base.rest(where)
    if theirs.keys() != ours.keys():
        yield Fault("M209", f"the {where} of '{model.name}' has not the base's tensors", at)
        return
    who = f"the {where} of '{model.name}'"
    for i, tensor in ours.items():
        a, b = theirs[i].spec.shape, tensor.spec.shape
        if a != b and not (has_rows(where, i) and a[1:] == b[1:]):
            yield Fault("M208", f"{who} has the shape {list(a)}, and the base's {list(b)}", at)


def every_token_has_a_row(checked: Checked) -> Iterator[Fault]:
    """Embedding and head get the rows of the output's tokenizer, where vocabularies are known."""
    owner = checked.tokenizer_model
    for where in ("embed", "head") if checked.union is None else ():
        recipe = checked.plan.rest(where) or outline.own(0)
        named = [(at, name) for at, name, _ in named_models(recipe)]
        if needs_base(recipe):
            named.append(((), "base"))
        for at, name in named:
            model = checked.models.get(name, owner)
            ours, theirs = model.rest(where).get(0), owner.rest(where).get(0)
            if ours is None or theirs is None or can_be_aligned(model, owner):
                continue
            if ours.spec.shape[0] != theirs.spec.shape[0]:
                message = (
                    f"the {where} of '{name}' has {ours.spec.shape[0]} tokens, and that of "
                    f"'{owner.name}', whose tokenizer the output has, {theirs.spec.shape[0]}"
                )
                unknown = model.name if model.vocabulary is None else owner.name
                help_ = f"'{unknown}' has no tokenizer to say which is which"
                said = checked.plan.rest(where) is not None
                yield Fault("M210", message, (where, *at) if said else ("tokenizer",), help_)


def every_tokenizer_can_be_read(checked: Checked) -> Iterator[Fault]:
    """A tokenizer's files are sound, where the output's tokens depend on them."""
    owner = checked.tokenizer_model
    named = {"base", owner.name} | _in_layers(checked)
    named |= {checked.plan.heal.teacher or ""} if checked.plan.heal is not None else set()
    for where in ("embed", "head"):
        named |= {name for _, name, _ in named_models(checked.plan.rest(where) or outline.own(0))}
    named |= set() if checked.union is None else checked.models.keys()
    others = sorted((named & checked.models.keys()) - {owner.name})
    for name in (owner.name, *others):
        model = checked.models[name]
        try:
            if name == owner.name or not _same_files(model, owner):
                _ = model.vocabulary
        except CheckpointError as error:
            message = f"{error.message} ({error.path})"
            yield Fault(error.code, message, ("models", name, "source"), error.help)
            if name == owner.name:  # nothing to compare the others with
                return


def every_token_has_a_number_within(checked: Checked) -> Iterator[Fault]:
    """The output's tokenizer has no tokens beyond the embedding's rows."""
    owner = checked.tokenizer_model
    embed = owner.rest("embed").get(0)
    if owner.vocabulary is None or embed is None or checked.union is not None:
        return
    rows = embed.spec.shape[0]
    beyond = [token for token, number in owner.vocabulary.ids.items() if number >= rows]
    if beyond:
        at = ("tokenizer",) if checked.plan.tokenizer is not None else ("models", "base", "source")
        message = (
            f"the tokenizer of '{owner.name}' has {counted(beyond)} beyond its embedding's "
            f"{rows} rows: {shown_tokens(beyond)}"
        )
        help_ = "the output can't read them"
        yield Fault("M308", message, at, help_, severity="warning")


def the_tokenizer_is_there(checked: Checked) -> Iterator[Fault]:
    """A model that gives its tokenizer has one."""
    if checked.plan.tokenizer is not None and checked.tokenizer_model.vocabulary is None:
        message = f"'{checked.tokenizer_model.name}' has no tokenizer that can be read"
        yield Fault("M211", message, ("tokenizer",))


def the_copied_files_name_no_code(checked: Checked) -> Iterator[Fault]:
    """Files beside the weights are settings, and name no code, which the output won't have."""
    owner, base = checked.tokenizer_model, checked.base
    source = ("models", "base", "source")
    at = ("tokenizer",) if checked.plan.tokenizer is not None else source
    if names_code(base.config):
        yield _code_left_out(CONFIG, base, source)
    copied = [(owner, at, path) for path in tokenizer_files(owner.checkpoint)]
    copied += [(owner, at, path) for path in [generation_config(owner.checkpoint)] if path]
    processor = processor_files(base.checkpoint) if base.layout.wrapped else ()
    copied += [(base, source, path) for path in processor]
    for model, place, path in copied:
        try:
            coded = [name for name, _ in files_with_code({path.name: path})]
        except CheckpointError as error:
            yield Fault(error.code, f"{error.message} ({error.path})", place, error.help)
            continue
        yield from (_code_left_out(name, model, place) for name in coded)


def _code_left_out(name: str, model: Opened, at: Place) -> Fault:
    message = f"{name} of '{model.name}' names code of its own ('auto_map')"
    help_ = "the output has the file without it; the code is never run"
    return Fault("M313", message, at, help_, severity="warning")


def tokenizers_agree(checked: Checked) -> Iterator[Fault]:
    """Layers read the tokens that they were trained on; other vocabularies are told."""
    owner = checked.tokenizer_model
    for name in sorted(_in_layers(checked)) if checked.union is None else ():
        model = checked.models[name]
        if name == owner.name or _same_files(model, owner):
            continue
        if owner.vocabulary is not None and model.vocabulary is not None:
            yield from _disagreement(name, model.vocabulary, owner.vocabulary)


def _disagreement(name: str, theirs: Vocabulary, ours: Vocabulary) -> Iterator[Fault]:
    how = relation(ours, theirs)
    at = ("models", name, "source")
    more = [token for token in theirs.ids if token not in ours.ids]
    if how == "extension":
        message = (
            f"'{name}' has {counted(more)} that the output's tokenizer lacks: {shown_tokens(more)}"
        )
        help_ = f"'tokenizer from {name}' brings them"
        yield Fault("M306", message, at, help_, severity="warning")
    elif how == "other":
        moved = [token for token, n in theirs.ids.items() if ours.ids.get(token, n) != n]
        why = f"{counted(more)} that it lacks: {shown_tokens(more)}"
        why = f"{counted(moved)} with other numbers: {shown_tokens(moved)}" if moved else why
        message = f"'{name}' has another vocabulary than the output's tokenizer, with {why}"
        help_ = "its layers were trained on other tokens"
        yield Fault("M307", message, at, help_, severity="warning")


def _same_files(model: Opened, owner: Opened) -> bool:
    return same_files(model.checkpoint.folder, owner.checkpoint.folder)


def _in_layers(checked: Checked) -> set[str]:
    """The models that layers are taken from; the base's own are where no statement is."""
    named = {n for _, r in layer_recipes(checked.plan) for _, n, _ in named_models(r)}
    named |= {"base"} if checked.plan.stack is None else set()
    return {name for name in named if name in checked.models}


def a_tied_head_is_said(checked: Checked) -> Iterator[Fault]:
    """In a tied model naming one of embedding and head decides both."""
    if not checked.base.layout.tied:
        return
    plan = checked.plan
    named = [where for where in ("embed", "head") if plan.rest(where) is not None]
    if len(named) != 1:
        return
    for _, name, _ in named_models(plan.rest(named[0]) or outline.own(0)):
        model = checked.models.get(name)
        if model is not None and not model.layout.tied:
            message = (
                f"the base's embedding and head are one tensor, and those of '{name}' are two: "
                f"its {named[0]} serves as both"
            )
            yield Fault("M304", message, (named[0],), "name both to untie them", severity="warning")


_REST_RULES: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    the_rest_fits,
    the_tokenizer_is_there,
    every_token_has_a_row,
    every_token_has_a_number_within,
    tokenizers_agree,
    the_copied_files_name_no_code,
    a_tied_head_is_said,
    the_ends_are_meant,
)
_MODEL_RULES: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    every_position_exists,
    every_source_layer_exists,
    something_remains,
    every_model_goes_with_the_base,
    every_model_is_used,
)
