"""Faults of GGUF files that a plan states or measures, and that can't be made of its models."""

from gptailor.checkpoint.files import CheckpointError
from gptailor.plan.faults import Fault, Place, TailorError, locate
from gptailor.plan.optional_packages import installed
from gptailor.plan.plan import Plan
from gptailor.plan.sites import measured
from gptailor.program.compile import compile_plan
from gptailor.program.gguf.architecture import WrittenArchitecture
from gptailor.program.gguf.tensors import planned_tensors
from gptailor.program.sources import Checked


def gguf_faults(checked: Checked) -> list[Fault]:
    """Return a fault (C306) for each GGUF file that a plan states or measures and can't be made.

    Of a plan with open choices the base alone is looked at, without the order of its layers. The
    tokenizer isn't looked at. There are no faults without transformers.
    """
    declared, base = checked.resolved.declared, checked.base
    is_closed = not checked.resolved.choices
    files: list[tuple[Place, str]] = [
        *((("gguf", i), file.type) for i, file in enumerate(declared.gguf)),
        *(
            ((*at, "arguments", "gguf"), str(wish.arguments["gguf"]))
            for at, wish in measured(declared)
            if "gguf" in wish.arguments and checked.gguf_file is None
        ),
    ]
    if not files or not installed("torch"):
        return []
    if not is_closed:
        bare = Plan(models={"base": declared.models["base"]}, dtype=declared.dtype)
        checked = Checked.of(bare, {"base": base})
    try:
        compiled = compile_plan(checked)
    except TailorError:  # a text that can't be read, which has a fault of its own
        return []
    faults = []
    for at, file_type in files:
        try:
            architecture = WrittenArchitecture(compiled.config, base.checkpoint.folder, checked)
            if architecture.unfit is not None and is_closed:
                raise architecture.unfit
            planned_tensors(compiled.program, architecture, file_type.upper())
        except CheckpointError as error:
            faults.append(Fault(error.code, error.message, at, error.help))
    return locate(faults, declared.origin)
