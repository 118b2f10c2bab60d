"""Faults of GGUF files that a plan states or measures, and that can't be made of its models."""

from gptailor.checkpoint.files import CheckpointError
from gptailor.plan.faults import Fault, Place, TailorError, locate
from gptailor.plan.optional_packages import installed
from gptailor.plan.plan import Plan
from gptailor.plan.sites import measured
from gptailor.program.compile import Compiled, compile_plan
from gptailor.program.gguf.architecture import WrittenArchitecture
from gptailor.program.gguf.tensors import planned_tensors
from gptailor.program.sources import Checked


def gguf_faults(checked: Checked) -> list[Fault]:
    """Return a fault (C306) for each GGUF file that a plan states or measures and can't be made.

    Of a plan with open choices the base alone is looked at, without the order of its layers. The
    tokenizer isn't looked at. There are no faults without transformers.
    """
    declared, is_closed = checked.resolved.declared, not checked.resolved.choices
    files: list[tuple[Place, str]] = [(("gguf", i), f.type) for i, f in enumerate(declared.gguf)]
    files += [
        ((*at, "arguments", "gguf"), str(wish.arguments["gguf"]))
        for at, wish in measured(declared)
        if "gguf" in wish.arguments and checked.gguf_file is None
    ]
    if not files or not installed("torch"):
        return []
    if not is_closed:
        base = {"base": checked.base}
        bare = Plan(models={"base": declared.models["base"]}, dtype=declared.dtype)
        checked = Checked.of(bare, base)
    try:
        compiled = compile_plan(checked)
    except TailorError:  # a text that can't be read, which has a fault of its own
        return []
    faults = []
    for at, file_type in files:
        try:
            _refuse_unwritable(checked, compiled, file_type.upper(), any_layers=not is_closed)
        except CheckpointError as error:
            faults.append(Fault(error.code, error.message, at, error.help))
    return locate(faults, declared.origin)


def _refuse_unwritable(
    checked: Checked, compiled: Compiled, file_type: str, *, any_layers: bool
) -> None:
    """Raise CheckpointError (C306) for a file that llama.cpp or the format lacks."""
    target = checked.base.checkpoint.folder
    architecture = WrittenArchitecture(compiled.config, target, checked)
    if architecture.unfit is not None and not any_layers:
        raise architecture.unfit
    planned_tensors(compiled.program, architecture, file_type)
