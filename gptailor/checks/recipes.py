"""Rules of merge methods, their arguments and their sources, and of the choices in a plan."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from gptailor.checkpoint.files import CheckpointError, read_object
from gptailor.checks.rule import ascending, repeats, rule
from gptailor.plan import plan as p
from gptailor.plan import sites
from gptailor.plan.doors import Door
from gptailor.plan.faults import Fault, Place, listed, nearest
from gptailor.plan.registry import GAP_FITS, METHODS, Method, Parameter

_PACKAGE = re.compile(r"(?a)\w[\w.-]* \d[\w.+!]*")
"""A distribution and its version; a lock, which may be a stranger's, could have anything."""

_METHODS_OF_MERGEKIT = {
    "dare_linear": "did you mean 'dare'?",
    "passthrough": "remove 'by'; without it a model's tensors stay as they are",
    "ramplus_tl": "did you mean 'ram_plus'?",
    "scale": "write by linear(0.5) for a multiple of one model's tensors",
}
_PARAMETERS_OF_MERGEKIT = {
    "filter_wise": "write by=row",
    "int8_mask": "remove it; in mergekit it saves memory and changes no tensor",
    "lambda": "use 'scale', or multiply the weights of task_arithmetic by it",
    "normalize_weights": "did you mean 'normalize'?",
    "nuslerp_flatten": "write by=row or by=column",
    "nuslerp_row_wise": "write by=column",
    "select_topk": "did you mean 'density'?",
}
_WORDS_OF_MERGEKIT = {"true": ("yes", "l1"), "false": ("no",)}
"""Remedies by mergekit's names, which come before the nearest name; its words have one of these."""


def _calls(plan: p.Plan) -> Iterator[tuple[Place, p.Recipe, p.MethodCall]]:
    """Yield each method call with its place and its recipe."""
    for at, recipe in sites.recipes(plan):
        yield from ((at + inner, recipe, call) for inner, call in sites.calls(recipe))


def _known_calls(plan: p.Plan) -> Iterator[tuple[Place, p.Recipe, p.MethodCall, Method]]:
    """Yield each call of a registered method, with that method."""
    calls = (call for call in _calls(plan) if call[-1].name in METHODS)
    yield from ((*call, METHODS[call[-1].name]) for call in calls)


def _given(plan: p.Plan) -> Iterator[tuple[Place, Method, Parameter, Any]]:
    """Yield each argument of a known parameter: its place, the method, and its value."""
    for at, _, call, method in _known_calls(plan):
        for name, argument in call.arguments.items():
            if (parameter := method.parameter(name)) is not None:
                yield (*at, "arguments", name), method, parameter, argument


@rule("P301")
def _every_method_is_known(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each method, and each fit of a bridge, that is not in its registry."""
    named: list[tuple[Door[Any], str, Place]] = [
        (METHODS, call.name, (*at, "name")) for at, _, call in _calls(plan)
    ]
    named += [(GAP_FITS, b.by, ("bridges", i, "by")) for i, b in enumerate(plan.bridges) if b.by]
    for table, name, at in named:
        if name not in table:
            names, package = table.names(), _locked_package(plan, name)
            help_ = f"pip install {package.replace(' ', '==')}" if package else ""
            known = f"the {table.kind}s are {listed(names)}" if names else "install its package"
            like = _METHODS_OF_MERGEKIT.get(name) or nearest(name, names)
            help_ = table.problem(name) or help_ or like or known
            by = f", which the lock has from the package {package}" if package else ""
            yield Fault("P301", f"there is no {table.kind} '{name}'{by}", at, help_)


def _locked_package(plan: p.Plan, method: str) -> str:
    """Return the package of a method in the lock beside the plan's file; empty without one."""
    if plan.origin is None:
        return ""
    lock = plan.origin.folder / f"{Path(plan.origin.source.name).name}.lock"
    with suppress(CheckpointError):
        packages = read_object(lock, "C701", duplicate=None).get("methods")
        package = packages.get(method) if isinstance(packages, dict) else None
        if isinstance(package, str) and _PACKAGE.fullmatch(package):
            return package
    return ""


@rule("P302")
def _every_parameter_is_known(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each argument that its method has no parameter for."""
    for at, _, call, method in _known_calls(plan):
        names = [parameter.name for parameter in method.parameters]
        for name in call.arguments:
            if name not in names:
                has = f"its parameters are {listed(names)}" if names else "it has no parameters"
                message = f"'{method.name}' has no parameter '{name}'"
                help_ = _PARAMETERS_OF_MERGEKIT.get(name) or nearest(name, names) or has
                yield Fault("P302", message, (*at, "arguments", name), help_)


@rule("P303")
def _every_argument_is_in_bounds(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each number, also an interval's ends, outside its parameter's bounds."""
    for at, _, call, method in _known_calls(plan):
        for inner, name, value in sites.call_values(call):
            parameter = method.parameter(name)
            if parameter is None or parameter.words:
                continue
            others = parameter.integer and isinstance(value, p.Named | p.Curve)  # another rule's
            bounded = () if others else sites.numbers(value, plan.numbers)
            messages = (_out_of_bounds(method, parameter, each) for each in bounded)
            if message := next(filter(None, messages), ""):
                yield Fault("P303", message, at + inner)
            if parameter.integer and isinstance(value, p.Interval):
                message = f"'{name}' of '{method.name}' must be a whole number, not an interval"
                yield Fault("P303", message, at + inner, "write 'one of (…)'")
        if message := _overfull(call, method, plan) or _uncertain(call, method, plan):
            yield Fault("P303", message, at)


def _out_of_bounds(method: Method, parameter: Parameter, number: int | float) -> str:
    """Return a message if a number is outside its parameter's bounds, else an empty text."""
    if parameter.integer and not isinstance(number, int):
        return f"'{parameter.name}' of '{method.name}' must be a whole number, not {number!r}"
    if parameter.admits(number):
        return ""
    return f"'{parameter.name}' of '{method.name}' must be in {parameter.bounds}, got {number!r}"


def _overfull(call: p.MethodCall, method: Method, plan: p.Plan) -> str:
    """Return a message if a source's kept and dropped shares exceed 1, else an empty text."""
    if method.parameter("gamma") is None:
        return ""
    density, gamma = (_each(call, method, name) for name in ("density", "gamma"))
    for both in _paired(density, gamma):
        for kept, dropped in _together(*both, plan):
            if kept + dropped > 1 + 1e-12:
                return f"expected at most 1 for density + gamma, got {kept!r} + {dropped!r}"
    return ""


def _uncertain(call: p.MethodCall, method: Method, plan: p.Plan) -> str:
    """Return a message if `epsilon` takes a probability beyond 0 or 1, else an empty text.

    A density of 1 keeps everything.
    """
    if method.parameter("epsilon") is None or method.parameter("density") is None:
        return ""
    densities, epsilons = (_each(call, method, name) for name in ("density", "epsilon"))
    for density, epsilon in _paired(densities, epsilons):
        ends = sites.numbers(density, plan.numbers)
        most = max(sites.numbers(epsilon, plan.numbers), default=0.0)
        low, high = min(ends, default=1.0), max(ends, default=1.0)
        if low < 1 and not (low - most > 0 and high + most < 1):
            shown = f"{low!r}" if low == high else f"{low!r}..{high!r}"
            return f"density ± epsilon must be in (0, 1), got {shown} ± {most!r}"
    return ""


def _each(call: p.MethodCall, method: Method, name: str) -> tuple[p.Value, ...]:
    """Return a parameter's values, one for each source or one for all; empty for a word."""
    argument = method.argument(call.arguments, name)
    if isinstance(argument, str):
        return ()
    several = argument if isinstance(argument, tuple) else (argument,)
    return tuple(value for value in several if not isinstance(value, str))


def _together(a: p.Value, b: p.Value, plan: p.Plan) -> Iterator[tuple[int | float, ...]]:
    """Return the largest pairs of two values; one for each knot of curves with as many knots."""
    each: list[Sequence[p.Value]] = [(a,), (b,)]
    curves = [value for value in (a, b) if isinstance(value, p.Curve)]
    if len({(len(curve.curve), curve.over) for curve in curves}) == 1:
        count = len(curves[0].curve)  # between knots at one place the sum is on a straight line
        each = [v.curve if isinstance(v, p.Curve) else (v,) * count for v in (a, b)]
    most = ([max(sites.numbers(v, plan.numbers), default=0.0) for v in values] for values in each)
    return zip(*most, strict=True)


def _paired(a: tuple[p.Value, ...], b: tuple[p.Value, ...]) -> Iterator[tuple[p.Value, p.Value]]:
    """Yield both values for each source, where one value may serve all sources."""
    count = max(len(a), len(b))
    more = (n * count if len(n) == 1 else n for n in (a, b))
    return zip(*more, strict=False)


@rule("P310", "P510")
def _whole_numbers_are_literal(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each name or curve in a parameter that takes whole numbers."""
    for at, _, call, method in _known_calls(plan):
        for inner, name, value in sites.call_values(call):
            parameter = method.parameter(name)
            if parameter is None or not parameter.integer:
                continue
            if isinstance(value, p.Named):
                message = f"'{name}' of '{call.name}' must be a whole number, not a name"
                yield Fault("P310", message, at + inner, "write the number itself")
            elif isinstance(value, p.Curve):
                message = f"'{name}' of '{call.name}' must be a whole number, not a curve"
                yield Fault("P510", message, at + inner, "write one number")


@rule("P304")
def _every_method_gets_its_sources(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each merge of too few or too many sources for its method."""
    for at, recipe, _, method in _known_calls(plan):
        if not isinstance(recipe, p.Merge):
            continue
        count = len(recipe.merge)
        if count < method.least or (method.most is not None and count > method.most):
            wants = "two" if method.least == method.most else f"{method.least} or more"
            help_ = "use another method, such as 'linear'"
            help_ = "add a source" if count < method.least else help_
            yield Fault("P304", f"'{method.name}' merges {wants} sources, not {count}", at, help_)


@rule("P311")
def _every_source_gets_its_number(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each list of numbers that isn't one for each source, or one for all."""
    for at, recipe, call, method in _known_calls(plan):
        source_count = len(list(sites.sources(recipe)))
        for parameter in method.parameters:
            argument = call.arguments.get(parameter.name)
            takes_list = parameter.variadic or (parameter.each and isinstance(argument, tuple))
            if argument is None or isinstance(argument, str) or not takes_list:
                continue
            count = len(argument) if isinstance(argument, tuple) else 1
            if count != source_count and not (count == 1 and parameter.one_serves_all):
                serves_all = parameter.one_serves_all or parameter.each
                message = f"expected {source_count} numbers for '{parameter.name}', got {count}"
                help_ = "give one for each source"
                if parameter.each and count == 1:
                    help_ += ", or one for all without parentheses"
                elif serves_all:
                    help_ += ", or one for all"
                yield Fault("P311", message, (*at, "arguments", parameter.name), help_)


@rule("P311")
def _only_listed_parameters_take_several_numbers(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each list of numbers in a parameter that takes one."""
    for at, method, parameter, argument in _given(plan):
        one = not (parameter.words or parameter.variadic or parameter.each)
        if one and isinstance(argument, tuple):
            name, count = parameter.name, len(argument)
            message = f"expected one number for '{name}' of '{method.name}', got {count}"
            yield Fault("P311", message, at)


@rule("P306", "P312")
def _every_word_of_a_parameter_is_known(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each word that its parameter doesn't have, and each word for a number."""
    for at, method, parameter, argument in _given(plan):
        if parameter.words and argument not in parameter.words:
            got = f"'{argument}'" if isinstance(argument, str) else "a number"
            words = listed((f"'{word}'" for word in parameter.words), "or")
            message = f"'{parameter.name}' of '{method.name}' must be {words}, not {got}"
            near = nearest(argument, parameter.words) if isinstance(argument, str) else ""
            others = _WORDS_OF_MERGEKIT.get(str(argument).lower(), ())
            same = [f"did you mean '{word}'?" for word in others if word in parameter.words]
            yield Fault("P312", message, at, next(iter(same), near))
        elif not parameter.words and isinstance(argument, str):
            yield Fault("P306", f"expected a number, got '{argument}'", at)


@rule("P313")
def _no_sum_of_weights_is_0(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each call that may divide by a sum of weights that is 0."""
    for at, recipe, call, method in _known_calls(plan):
        argument = method.argument(call.arguments, "weight")
        divides = method.argument(call.arguments, "normalize") == "yes" or method.name == "nuslerp"
        if not divides or isinstance(argument, str):
            continue
        count = len(list(sites.sources(recipe)))
        weights = argument if isinstance(argument, tuple) else (argument,)
        ends = [
            sites.numbers(1.0 if value is None else value, plan.numbers) or (1.0,)
            for value in weights
        ]
        ends = ends * count if len(ends) == 1 else ends
        if method.elects and (message := _cancels(ends)):
            yield Fault("P313", message, (*at, "arguments", "weight"), _UNDIVIDED)
        least = 2 if isinstance(recipe, p.Subset) else count
        if not method.elects and len(ends) == count and _may_sum_to_0(ends, least):
            by = "'normalize=yes'" if method.name != "nuslerp" else "'nuslerp'"
            message = f"the weights may sum to 0, and {by} divides by their sum"
            yield Fault("P313", message, (*at, "arguments", "weight"), _UNDIVIDED)


_UNDIVIDED = "change the weights, or write 'normalize=no' if the method has it"


_NO_SUM = 1e-8
"""The least sum of weights that rounding alone doesn't make of 0."""


def _cancels(ends: Sequence[Sequence[float]]) -> str:
    """Return a message if the weights of sources that agree may sum to 0."""
    signed = [e for e in ends if any(e)]
    if not (any(min(e) < 0 for e in signed) and any(max(e) > 0 for e in signed)):
        return ""
    if any(len(e) > 1 for e in signed) or len(signed) > _MOST_SUMMED:
        return "weights of both signs may sum to 0, and 'normalize=yes' divides by their sum"
    sums = (math.fsum(e[0] for e in some)
            for k in range(2, len(signed) + 1) for some in combinations(signed, k))  # fmt: skip
    if any(abs(total) < _NO_SUM for total in sums):
        signed_words = "weights of sources with the same sign may sum to 0"
        return f"{signed_words}, and 'normalize=yes' divides by their sum"
    return ""


_MOST_SUMMED = 12
"""The most weights of both signs for which all sums are computed; more are refused."""


def _may_sum_to_0(ends: Sequence[Sequence[float]], least: int) -> bool:
    """Return whether `least` or more of the weights, each between its ends, may sum to 0."""
    lows, highs = sorted(min(e) for e in ends), sorted((max(e) for e in ends), reverse=True)
    low = math.fsum([*lows[:least], *(n for n in lows[least:] if n < 0)])
    high = math.fsum([*highs[:least], *(n for n in highs[least:] if n > 0)])
    return low < _NO_SUM and high > -_NO_SUM


@rule("P304", "P308")
def _a_merge_has_sources(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each merge without sources, or with a share and other ways to merge."""
    for at, recipe in sites.recipes(plan):
        if not isinstance(recipe, p.Merge):
            continue
        if not recipe.merge:
            yield Fault("P304", "a merge has no source", at, "add its sources")
        if recipe.share is not None and (len(recipe.merge) != 2 or recipe.by is not None):
            message = "a merge with one number must have two sources and no method"
            help_ = "use a method such as linear, with a number for each source"
            yield Fault("P308", message, (*at, "share"), help_)


@rule("P218")
def _every_source_names_a_layer(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each source of a layer without a layer, or of the rest with a layer."""
    for at, recipe in sites.recipes(plan):
        is_layer = at[0] in ("layers", "stack")
        places = [(*a, "layer") for a, s in sites.sources(recipe) if (s.layer is None) == is_layer]
        if isinstance(recipe, p.Subset):
            places = [("layer",)] if (recipe.layer is None) == is_layer else []
        if places:
            message, help_ = "this source can't have a layer number", "remove 'layer'"
            if is_layer:
                message, help_ = "a layer's source must have a layer number", "add 'layer'"
            yield Fault("P218", message, at + places[0], help_)


@rule("P217")
def _a_stack_determines_the_base_layer(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each merge of a stack without a determined base layer.

    A method that uses the base takes the base's layer of the number that all sources name.
    """
    for at, recipe in sites.layer_recipes(plan):
        if at[0] != "stack" or not isinstance(recipe, p.Merge):
            continue
        layers = {source.layer for source in recipe.merge}
        calls = [call for _, call in sites.calls(recipe) if call.name in METHODS]
        needing = [c.name for c in calls if METHODS[c.name].takes_base(c.arguments)]
        if len(layers) > 1 and needing:
            names = listed(f"L{n}" for n in sorted(n for n in layers if n is not None))
            message = f"'{needing[0]}' needs one base layer, but the sources name {names}"
            yield Fault("P217", message, (*at, "by"), "use 'linear' or 'slerp', which need no base")


# ------------------------------------------------------------------------------------------ choices


@rule("P501", "P502")
def _any_of_can_merge(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each `any of` without a method that takes any number of sources."""
    for at, recipe in sites.recipes(plan):
        if not isinstance(recipe, p.Subset):
            continue
        if recipe.by is None:
            message = "'any of' may choose several models without a method to merge them"
            yield Fault("P502", message, at, "add 'by' and a method, such as 'by linear()'")
        for inner, call in sites.calls(recipe):
            method = METHODS.get(call.name)
            if method is not None and not method.takes_any_number:
                able = listed(m.name for m in METHODS.values() if m.takes_any_number)
                message = f"'{call.name}' can't merge all the models that 'any of' may choose"
                yield Fault("P501", message, at + inner, f"use one of {able}")


@rule("P504")
def _every_interval_ascends(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each interval that is empty or descends."""
    for at, value in sites.values(plan):
        if isinstance(value, p.Interval):
            yield from ascending("interval", value.interval, at, "is empty")


@rule("P505")
def _every_choice_has_distinct_options(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each choice with fewer than two options, or the same option twice."""
    for at, options in _options(plan):
        repeated = [options[i] for i, _ in repeats(map(_key, options))]
        if repeated:
            option_name = repeated[0].name if isinstance(repeated[0], p.MethodCall) else repeated[0]
            yield Fault(
                "P505", f"'{option_name}' is in this choice twice", at, "remove one of the two"
            )
        elif len(options) < 2:
            what, help_ = "the choice has no options", "add options"
            if options:
                what, help_ = "the choice has only one option", "write it without 'one of'"
            yield Fault("P505", what, at, help_)


def _key(option: object) -> object:
    """Return a hashable value that only equal options share."""
    if isinstance(option, p.MethodCall):
        return option.name, frozenset(option.arguments.items())
    return option


def _options(plan: p.Plan) -> Iterator[tuple[Place, tuple[object, ...]]]:
    """Yield the place and the options of each choice that lists them."""
    for site in sites.sites(plan):
        if isinstance(site.value, p.OneOfModels | p.OneOfMethods):
            yield site.place, site.value.one_of
        elif isinstance(site.value, p.Subset):
            names = site.value.any_of
            if len(set(names)) != max(1, len(names)):  # one model alone may be chosen or not
                yield (*site.place, "any_of"), names
    for at, value in sites.values(plan):
        if isinstance(value, p.OneOfNumbers):
            yield at, value.one_of
