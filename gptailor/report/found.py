"""What a search found, in words: its summary as a page and for a terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptailor.report.block_map import block_lines
from gptailor.report.objective_mean import mean_of_objectives
from gptailor.report.scores import (
    beside_base,
    bytes_in_words,
    percent,
    shown_number,
    with_error,
)

_Said = Mapping[str, Any]


def markdown(said: _Said) -> str:
    """The summary as a page."""
    lines = [f"# {said['plan']}", "", ended_words(said), "", verdict_words(said), ""]
    for i, aim in _tabled(said):
        lines += [*_page_table(*_scores(said, i, f"`{aim['name']}` ({_better(aim)})")), ""]
    if (mean := mean_of_objectives(said)) is not None:
        name = f"{mean['objectives'][0]['name']} ({_better(mean['objectives'][0])})"
        lines += [*_page_table(*_scores(mean, 0, name)), ""]
    if len(said["sizes"]) > 1:
        lines += ["## Quality over size", "", *_page_table(*_sizes(said)), ""]
    head, *blocks = block_lines(said) or [""]
    listed = [[head, "", *(f"- {line.strip()}" for line in blocks)] if head else []]
    parts = (_required(said), _final(said), _repeats(said))
    listed += [[f"- {line}" for line in found] for found in parts]
    for part in (
        *listed,
        [*_left_out(said)],
        [*_random(said)],
        [*_spent(said)],
        [*_commands(said)],
    ):
        lines += [*part, ""] if part else []
    return "\n".join(lines).rstrip() + "\n"


def summary_lines(said: _Said, width: int) -> Iterator[str]:
    """The same for a terminal of so many columns."""
    yield ended_words(said)
    for i, aim in _tabled(said):
        yield ""
        yield f"{aim['name']}: {_better(aim)}{_held(said, i)}"
        yield from _columns(*_scores(said, i, ""), width)
    if (mean := mean_of_objectives(said)) is not None:
        yield ""
        yield f"{mean['objectives'][0]['name']}: {_better(mean['objectives'][0])}"
        yield from _columns(*_scores(mean, 0, ""), width)
    if len(said["sizes"]) > 1:
        yield from ("", "quality over size: gptailor pick writes one of these")
        yield from _columns(*_sizes(said), width)
    found = block_lines(said), _required(said), _final(said), _repeats(said)
    for part in (*found, _left_out(said), _random(said), _spent(said)):
        for n, line in enumerate(part):
            yield from [line] if n else ["", line]
    yield from ("", verdict_words(said))
    for n, line in enumerate(_commands(said)):
        yield from [line] if n else ["", line]


def _tabled(said: _Said) -> list[tuple[int, _Said]]:
    """The objectives that have a table of their own: sizes from headers stand in that of sizes."""
    aims = enumerate(said["objectives"])
    return [(i, aim) for i, aim in aims if aim["unit"] not in ("parameters", "bytes a token")]


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A table whose first column gives way: in the middle, as names begin and end alike."""
    sizes = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    sizes[0] = max(12, min(sizes[0], width - sum(sizes[1:]) - 2 * len(sizes)))
    for name, *cells in (head, *rows):
        first, tail = sizes[0] // 2, (sizes[0] - 1) // 2
        short = name if len(name) <= sizes[0] else f"{name[:first]}…{name[-tail:]}"
        columns = [f"{cell:>{size}}" for cell, size in zip(cells, sizes[1:], strict=True)]
        yield f"  {short:<{sizes[0]}}  {'  '.join(columns)}".rstrip()


def _page_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    first, *rest = (f"| {' | '.join(row)} |" for row in (head, *rows))
    return [first, "|---|" + "--:|" * (len(head) - 1), *rest]


# -------------------------------------------------------------------------------------- the tables


def ended_words(said: _Said) -> str:
    """How many trials there were, at what cost, and why there were no more."""
    ends = {
        "budget": "",
        "exhausted": "; the strategy found nothing new any more",
        "interrupted": "; interrupted, and the same command goes on",
    }
    failed = f", {said['failed']} failed" if said["failed"] else ""
    hits = f", {said['hits']} known before" if said["hits"] else ""
    late = said.get("late", 0)
    times = "once" if late == 1 else f"{late} times"
    order = f"; a worker wasn't waited for {times}: the same seed may give others" if late else ""
    stopped = said.get("stopped", 0)
    spared = f", {stopped} given up early (spared: {said['spared']:g})" if stopped else ""
    return (
        f"{_plans(said['trials'], 'trial')} at the cost of {_plans(said['cost'], 'whole one')}"
        f"{failed}{hits}{spared}{ends[said['ended']]}{order}"
    )


def _plans(count: float, one: str) -> str:
    """`1 plan`, `2 plans`."""
    return f"{count:g} {one}{'s' * (count != 1)}"


def _left_out(said: _Said) -> Iterator[str]:
    if left := said.get("left_out"):
        yield f"Starting plans that the budget had no room for: {', '.join(left)}."
    if beyond := said.get("beyond"):
        yield f"Starting plans beyond what is required of sizes: {', '.join(beyond)}."


def _better(aim: _Said) -> str:
    return "less is better" if aim["direction"] == "minimize" else "more is better"


def _held(said: _Said, i: int) -> str:
    count = said["held"][i] if said["held"] else 0
    return f"; held out: {count} samples" if count else "; nothing was held out"


def _rows(said: _Said) -> list[tuple[str, _Said]]:
    """Names and rows: the base uncut, starting plans, random ones, what was found."""
    found: list[tuple[str, _Said]] = [("the base, uncut", said["base"])]
    found += [(row["origin"], row) for row in said["starts"]]
    drawn, best = said["random"], said["best"]
    if drawn["best"] is not None:
        found.append((f"the best of {_plans(drawn['trials'], 'random plan')}", drawn["best"]))
    if said["found"] is not None:
        same = best is not None and best["trial"] == said["found"]["trial"]
        name = said["best_file"] if same else f"trial {said['found']['trial']}"
        found.append((f"found: {name}", said["found"]))
    return found


def _scores(said: _Said, i: int, name: str) -> tuple[list[str], list[list[str]]]:
    gone = _lost_head(said["objectives"][i])
    head = [name, "score", gone, "held out", gone]
    return head, [_cells(name, row, i, said) for name, row in _rows(said)]


def _lost_head(aim: _Said) -> str:
    """What the column beside a score has: shares of what is counted, else what is lost."""
    share = aim["unit"] == "accuracy" or aim["size"]
    return "of the base's" if share else f"{aim['unit']} lost".strip()


def _lost_cell(aim: _Said, value: float | None, base: float | None) -> str:
    """A number for that column: more is worse, but for shares."""
    text = lost(aim, value, base)
    if not text or text.endswith("%"):
        return text
    return f"{'-' if text.endswith('won') else ''}{text.partition(' ')[0]}"


def _cells(name: str, row: _Said, i: int, said: _Said) -> list[str]:
    values, errors, held = row["values"], row.get("stderrs"), row["held"]
    base, aim = said["base"], said["objectives"][i]
    uncut = row is base
    there = None if not held or "values" not in held else held["values"][i]
    theirs = base["held"] and base["held"].get("values")
    return [
        name + ("" if row.get("stage", "bare") == "bare" else f" ({row['stage']})"),
        shown_number(values and values[i], errors and errors[i]),
        "" if uncut else _lost_cell(aim, values and values[i], _at(base["values"], i)),
        "" if not held
        else shown_number(there, held["stderrs"][i]) if there is not None
        else "failed",
        "" if uncut else _lost_cell(aim, there, _at(theirs, i)),
    ]  # fmt: skip


def _at(values: Sequence[float] | None, i: int) -> float | None:
    return None if values is None else values[i]


def lost(aim: _Said, value: float | None, base: float | None) -> str:
    """What a score has lost beside the base's by an objective; nothing where that says nothing."""
    if value is None or base is None or aim["scale"] != "base":
        return ""
    if aim["size"]:
        return percent(value / base if base else None)
    better = aim["direction"]
    gone = value - base if better == "minimize" else base - value
    share = value / base if base else None
    return beside_base(better, aim["unit"], share, gone).removesuffix(" of the base")


def _sizes(said: _Said) -> tuple[list[str], list[list[str]]]:
    """A row a size: the best plan that is so large, beside the base."""
    aims = [i for i, _ in _tabled(said)]
    several = [f" {n}" for n in range(1, len(aims) + 1)] if len(aims) > 1 else [""] * len(aims)
    head = ["plan", "layers", "parameters", "weights", "KV/token"]
    for n in several:
        head += [f"score{n}", f"lost{n}", f"held out{n}"]
    rows = []
    for row in said["sizes"]:
        cache = row["kv_cache"]
        name = row["file"].removeprefix("front/").removesuffix(".tailor")
        cells = [name, str(row["layers"]), f"{row['parameters']:,}", bytes_in_words(row["bytes"]),
                 "?" if cache is None else bytes_in_words(cache)]  # fmt: skip
        for i in aims:
            _, score, gone, held, _ = _cells("", row, i, said)
            cells += [score, gone, held]
        rows.append(cells)
    return head, rows


# ------------------------------------------------------------------------------------ in sentences


def verdict_words(said: _Said) -> str:
    """Whether the search found more than what is to be had without it."""
    found = said["verdict"]
    if found is None:
        unmet = said.get("required") and not said["required"]["met"]
        return "There is no best plan." if unmet else "No plan has a score."
    several, numbers = sum(not aim["size"] for aim in said["objectives"]), found["numbers"]
    means = f", mean of {len(numbers)} objectives" if len(numbers) > 1 else ""
    if len(numbers) < several:
        means = f", by {said['objectives'][numbers[0]]['name']} alone"
    where = "on held-out samples" if found["held"] else "on the samples that it was chosen by"
    paired = f" ({where}, in pairs{means})"
    base = _beside_the_base(found)
    if found["against"] is None:
        return f"There is no starting plan to compare it with.{base}"
    gain, name = _gain(found["against"], found["unit"]), found["against"]["origin"]
    if found["better"]:
        many = found["starts"]
        which = (
            f"than the best of {many} starting plans, '{name}'" if many > 1 else f"than '{name}'"
        )
        return f"Better {which}, by {gain}{paired}.{base}"
    simpler = ""
    if said["best"]["trial"] != said["found"]["trial"]:
        simpler = f": best.tailor is the simpler one, trial {said['best']['trial']}"
        simpler += f" ({said['best']['origin']})"
    if found["itself"]:
        return f"The search found nothing better than a starting plan, '{name}'{simpler}.{base}"
    if found["worse"]:
        return f"Worse than '{name}', by {gain}{paired}{simpler}.{base}"
    way = _way(found["against"])
    return f"No better than '{name}', a tie: {way} by {gain}{paired}{simpler}.{base}"


def _beside_the_base(found: _Said) -> str:
    """How the plan found stands beside a base that is no larger."""
    base = found["base"]
    if base is None or not base["no_larger"]:
        return ""
    better = "Better" if base["better"] else "No better"
    gain = f"{_way(base)} by {_gain(base, found['unit'])}"
    return f" {better} than the base, uncut, which is no larger: {gain}."


def _way(of: _Said) -> str:
    return "worse" if of["gain"] < 0 else "better"


def _gain(of: _Said, unit: str) -> str:
    """`0.031 ± 0.006 nats`, better or worse."""
    scale, name = (1.0, unit) if unit else (100.0, "% of the base's scores")
    error = math.inf if of["stderr"] is None else of["stderr"]
    return f"{with_error(scale * abs(of['gain']), scale * error)} {name}"


def _required(said: _Said) -> Iterator[str]:
    """What was required, and what the best plan has of it, or the nearest one."""
    found = said.get("required")
    if found is None:
        return
    judged, met, nearest = (found[name] for name in ("judged", "met", "nearest"))
    near = "" if nearest is None else f"; the nearest is {nearest}"
    if not found["whole"]:
        yield "what is required of plans was not judged to the end yet"
    if met:
        yield f"{met} of {judged} plans that were judged meet what is required"
    elif judged or found["whole"]:
        yield f"none of {judged} plans that were judged meets what is required{near}"
    for row in found["rows"]:
        held = "" if row["held"] is None else f", held out {shown_number(row['held'])}"
        there = row.get("held_bound")
        held += f" ({shown_number(there)})" if held and there not in (None, row["bound"]) else ""
        bound = shown_number(row["bound"])
        yield f"{row['require']} ({bound}): it has {shown_number(row['value'])}{held}"


def _final(said: _Said) -> Iterator[str]:
    """What became of the best trials that were bridged, or bridged and healed, in the end."""
    for row in said["final"]:
        name = f"trial {row['trial']} ({row['origin']}), {row['stage']}"
        if row["values"] is None:
            why, _, _ = row["failure"].partition("\n")
            yield f"{name}: failed: {why}"
            continue
        before = row["before"] or [None] * len(row["values"])
        pairs = zip(before, row["values"], strict=True)
        yield f"{name}: {'; '.join(f'{shown_number(b)} → {shown_number(v)}' for b, v in pairs)}"


def _repeats(said: _Said) -> Iterator[str]:
    """How far searches on other draws of the samples agree."""
    found = said["repeats"]
    if found is None:
        return
    runs = found["runs"]
    if without := found.get("without"):
        seeds = ", ".join(map(str, without))
        yield f"On other draws of the samples, with these seeds, no plan was found: {seeds}."
    if len(runs) == 1:
        return
    yield (
        f"Searches on {len(runs)} draws of the samples, this one first, drop"
        f" {found['dropped_in_all']} layers alike, of {_span(found['dropped'])} that each drops;"
        f" {found['alike_in_all']} of {found['kept_in_all']} layers that all keep are made of the"
        " same models."
    )
    for n, run in enumerate(runs):
        here = [run["scores"][m] for m in range(len(runs))]
        scores = "; ".join(
            "failed" if values is None else ", ".join(map(shown_number, values)) for values in here
        )
        yield f"On the samples of draw {n + 1} (seed {run['seed']}) the plans score {scores}."
    if found["agree"]:
        many = found["agree"]
        yield f"The plan found here is the best, or ties with it, on {many} of the other draws."
    else:
        yield "On none of the other draws is the plan found as good as the one found there."


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _random(said: _Said) -> Iterator[str]:
    drawn, found = said["random"], said["found"]
    if drawn["whole"]:
        yield f"Random search at the same cost evaluated {_plans(drawn['trials'], 'plan')}."
    elif drawn["expected"] is not None and found is not None:
        reach, got = _reached(said, drawn["expected"])
        yield (
            f"Random search at the same cost would be expected to {reach}"
            f" (found: {got}): an estimate from {_plans(drawn['trials'], 'random plan')}, which"
            " --compare-random makes sure."
        )


def _reached(said: _Said, expected: float) -> tuple[str, str]:
    """What is expected, and what was found: a score, or of several objectives a mean loss."""
    judging, unit = said["judging"], said["loss_unit"]
    if len(judging) == 1:
        return f"reach {shown_number(expected)}", shown_number(said["found"]["values"][judging[0]])
    return f"lose {shown_number(expected)} {unit} on the mean", shown_number(said["found"]["lost"])


def _spent(said: _Said) -> Iterator[str]:
    """What was measured beside the trials, in evaluations on all samples."""
    spent = said["measured"]
    parts = []
    if spent["evaluations"]:
        clock = f" ({spent['seconds']:.0f} s)" if spent["seconds"] >= 1 else ""
        whole = f"{said['cost'] + spent['evaluations']:.4g} with the trials"
        parts.append(f"what starting plans go by cost {spent['evaluations']:.3g}{clock}, {whole}")
    if spent["base"]:
        parts.append(f"the base, on top, {spent['base']:.3g}")
    if parts:
        yield f"In evaluations on all samples: {'; '.join(parts)}."


def _commands(said: _Said) -> Iterator[str]:
    if said["best"] is not None:
        for command in said["commands"]:
            yield f"    {command}"
