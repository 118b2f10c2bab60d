"""The tokenizer of a plan's output, as the compiled folder has it."""

import hashlib
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gptailor.checkpoint.folder import tokenizer_files
from gptailor.checkpoint.formats.gguf import is_gguf
from gptailor.checkpoint.models import Opened
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import sources
from gptailor.prepare import Prepared
from gptailor.program.gguf_tokenizer import tokenizer_from_gguf


def tokenizer_model(prepared: Prepared) -> Opened:
    """The model whose tokenizer the output has."""
    recipe = prepared.plan.tokenizer
    name = "base" if recipe is None else sources(recipe)[0].model
    assert isinstance(name, str)
    return prepared.models[name]


def digest(model: Opened) -> str:
    """Of the tokenizer's files: models with the same read texts alike."""
    checkpoint = model.checkpoint
    files = tokenizer_files(checkpoint) or checkpoint.files[:1]
    if is_gguf(files[0]):
        return str(files[0].resolve())
    made = hashlib.blake2b()
    for file in files:
        content = file.read_bytes()
        made.update(f"{file.name}\0{len(content)}\0".encode() + content)
    return made.hexdigest()


def tokenizer_of(model: Opened) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises TailorError where it has none that can be loaded."""
    checkpoint = model.checkpoint
    if tokenizer_files(checkpoint):
        return _load(checkpoint.folder, checkpoint.folder)
    if not is_gguf(checkpoint.files[0]):
        raise TailorError(f"'{checkpoint.folder}' has no tokenizer, which texts need")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_from_gguf(checkpoint.files[0]).items():
            (Path(folder) / name).write_bytes(content)
        return _load(Path(folder), checkpoint.files[0])


def _load(folder: Path, shown: Path) -> PreTrainedTokenizerBase:
    try:
        loaded = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises anything for a file that is no tokenizer
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TailorError(f"the tokenizer of '{shown}' can't be loaded: {first}") from error
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded
