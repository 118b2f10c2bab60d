"""`vocabulary N on "text"`: folders, live models and GGUF files with fewer tokens."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptailor
from gptailor.evaluation.objectives.base import ObjectiveError
from gptailor.evaluation.scores import Score
from gptailor.plan.faults import PlanError
from gptailor.prepare import ready
from tests.support.tiny import tiny_model
from tests.support.vocabularies import TEXT, write_byte_level

pytestmark = pytest.mark.usefixtures("brief_answers")

SIZE = 290


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with a byte-level tokenizer of 360 tokens: padded rows, heads tied and not."""
    folder = tmp_path_factory.mktemp("vocabulary")
    for seed, (name, tied) in enumerate({"base": False, "math": False, "tied": True}.items()):
        ids = {"bos_token_id": 356, "eos_token_id": 358}
        shape = {"vocab_size": 368, "tie_word_embeddings": tied, "layers": 4}
        tiny_model("llama", folder / name, seed=seed, **shape, **ids)
        write_byte_level(folder / name)
    (folder / "text.txt").write_text(TEXT.replace("\r", "") * 12, encoding="utf-8")
    rows = [{"text": line[:100]} for line in TEXT.splitlines() if len(line) > 40] * 4
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def plan_of(models: Path, text: str, base: str = "base") -> gptailor.Plan:
    head = f'tailor 1\nmodel base = "{models / base}"\n'
    return gptailor.loads(head + text.replace("TEXT", str(models / "text.txt")))


def logits(folder: Path, text: str) -> tuple[list[str], torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        result: torch.Tensor = model(**encoded).logits[0]
    return tokenizer.convert_ids_to_tokens(encoded.input_ids[0].tolist()), result


@pytest.mark.parametrize("base", ["base", "tied"])
def test_kept_tokens_have_their_logits(models: Path, tmp_path: Path, base: str) -> None:
    plan = plan_of(models, f'vocabulary {SIZE} on "TEXT"', base)
    result = gptailor.compile(plan, tmp_path / "out")
    assert result.vocabulary is not None
    assert (result.vocabulary.kept, result.vocabulary.total) == (SIZE, 360)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert config["vocab_size"] == len(tokenizer) == SIZE
    assert config["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    old = json.loads((models / base / "tokenizer.json").read_text())
    whole = Tokenizer.from_str(json.dumps(old)).get_vocab()
    kept = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    text = "the are <|im_end|>"
    tokens, before = logits(models / base, text)
    same, after = logits(tmp_path / "out", text)
    assert same == tokens  # all of them are kept
    assert torch.equal(before[:, [whole[token] for token in kept]], after)


@pytest.mark.parametrize("base", ["base", "tied"])
@pytest.mark.parametrize("heal", ["", 'heal on "TEXT" tokens 512 rank 2'])
def test_the_tokenizers_own_size_drops_padding_rows(
    models: Path, tmp_path: Path, base: str, heal: str
) -> None:
    plan = plan_of(models, f'vocabulary 360 on "TEXT"\n{heal}', base)
    result = gptailor.compile(plan, tmp_path / "out")
    assert result.vocabulary is not None
    assert (result.vocabulary.kept, result.vocabulary.total) == (360, 360)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 360
    assert config["eos_token_id"] == 358
    if not heal:
        whole, cut = (load_file(f / "model.safetensors") for f in (models / base, tmp_path / "out"))
        for name, tensor in whole.items():
            assert torch.equal(cut[name], tensor[:360] if len(tensor) == 368 else tensor), name
        [tokens, before], [same, after] = (
            logits(folder, TEXT) for folder in (models / base, tmp_path / "out")
        )
        assert same == tokens
        assert torch.equal(before[:, :360], after)


def test_the_tokenizers_own_size_changes_nothing_without_padding_rows(
    models: Path, tmp_path: Path
) -> None:
    gptailor.compile(plan_of(models, 'vocabulary 360 on "TEXT"'), tmp_path / "whole")
    plan = gptailor.loads(
        f'tailor 1\nmodel base = "{tmp_path / "whole"}"\n'
        f'vocabulary 360 on "{models / "text.txt"}"\n'
    )
    result = gptailor.compile(plan, tmp_path / "again")
    assert result.vocabulary is None
    names = ("model.safetensors", "tokenizer.json", "config.json")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_live_model_equals_the_folder(models: Path, tmp_path: Path) -> None:
    text = f'model math = "{models / "math"}"\nwhole from base, math by linear()\n'
    plan = plan_of(models, f'{text}let n = {SIZE}\nvocabulary n on "TEXT" tokens 200')
    gptailor.compile(plan, tmp_path / "out", locking=True)
    live = gptailor.stitch(plan)
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(SIZE)[None]
    with torch.no_grad():
        assert torch.equal(live(ids).logits, folder(ids).logits)
    assert live.config.eos_token_id == folder.config.eos_token_id
    assert gptailor.verify(tmp_path / "out").result == "verified"


def test_generation_ends_at_the_renumbered_end_token(models: Path, tmp_path: Path) -> None:
    base = shutil.copytree(models / "base", tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [358, 356]}))
    plan = plan_of(models, f'vocabulary {SIZE} on "TEXT"', str(base))
    gptailor.compile(plan, tmp_path / "out")
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ends = gptailor.stitch(plan).generation_config.eos_token_id
    assert ends == folder.generation_config.eos_token_id
    assert max(ends) < SIZE


def test_a_text_that_changes_during_a_compile_is_refused(models: Path, tmp_path: Path) -> None:
    text = shutil.copy(models / "text.txt", tmp_path / "text.txt")
    plan = gptailor.loads(
        f'tailor 1\nmodel base = "{models / "base"}"\nvocabulary {SIZE} on "{text}"\n'
    )
    prepared = ready(plan)
    Path(text).write_text("another text " * 50, encoding="utf-8")
    with pytest.raises(gptailor.TailorError, match=r"text\.txt"):
        gptailor.compile(prepared, tmp_path / "out", locking=True)
    assert not (tmp_path / "out").exists()


def test_without_the_models_the_tokenizer_is_not_compared(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "base", tmp_path / "base")
    head = 'tailor 1\nmodel base = "./base"\n'
    plan = gptailor.loads(f'{head}vocabulary {SIZE} on "{models / "text.txt"}"', folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out", locking=True)
    shutil.rmtree(tmp_path / "base")
    result = gptailor.verify(tmp_path / "out")
    assert (result.result, result.differences) == ("unverified", ())


def test_vocabularies_are_compared_by_byte(models: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "plan.tailor", models / "rows.jsonl"
    path.write_text(str(plan_of(models, f'vocabulary {SIZE} on "TEXT"')))
    evaluated = gptailor.evaluate([path], [f'nll("{file}")', f'perplexity("{file}")'])
    assert evaluated.by_byte
    assert "bits a byte" in str(evaluated)
    nll, perplexity = (result.outcome for result in evaluated.results)
    assert perplexity.value == pytest.approx(math.exp(nll.value * math.log(2)))
    base = evaluated.bases[0].outcome
    assert base.each.counts == nll.each.counts
    sizes = [len(json.loads(line)["text"].encode()) for line in file.read_text().splitlines()]
    assert sorted(nll.each.counts) == sorted(sizes)
    assert evaluated.results[0].difference is not None
    alone = gptailor.evaluate([models / "base"], f'nll("{file}")')
    assert not alone.by_byte
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(models / "base").eval()
    total = 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        total -= float(logs.gather(1, ids[0, 1:, None]).sum()) / math.log(2)
    assert base.value == pytest.approx(total / sum(sizes), rel=1e-5)


def test_kl_is_over_the_kept_tokens(models: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "plan.tailor", models / "rows.jsonl"
    path.write_text(str(plan_of(models, f'vocabulary {SIZE} on "TEXT"')))
    [result] = gptailor.evaluate([path], f'kl("{file}")').results
    assert result.outcome.value == pytest.approx(0, abs=1e-9)


def test_acceptance_has_one_vocabulary(models: Path, tmp_path: Path) -> None:
    wanted, cut = f'acceptance("{models / "rows.jsonl"}")', f'vocabulary {SIZE} on "TEXT"\n'
    with pytest.raises(ObjectiveError, match=r"the same vocabulary .* without 'vocabulary'"):
        gptailor.evaluate([plan_of(models, cut)], wanted)
    space = plan_of(models, f"{cut}maybe drop L1\nsearch {{ maximize {wanted} }}")
    with pytest.raises(ObjectiveError, match=r"the same vocabulary .* without 'vocabulary'"):
        gptailor.search(space, tmp_path / "run", trials=2)


def test_a_cut_vocabulary_is_bridged_and_healed(models: Path, tmp_path: Path) -> None:
    text = (
        f'vocabulary {SIZE} on "TEXT"\ndrop L1\nbridge on "TEXT" tokens 512\n'
        'heal on "TEXT" tokens 256 rank 2\n'
    )
    result = gptailor.compile(plan_of(models, text), tmp_path / "out")
    assert list(result.fits) == ["vocabulary", "L0", "heal"]
    assert math.isfinite(result.fits["heal"].numbers["healed"])
    taught = gptailor.compile(
        plan_of(models, text.replace("heal", f'model math = "{models / "math"}"\nheal from math')),
        tmp_path / "taught",
    )
    starts = [made.fits["heal"].numbers["start"] for made in (taught, result)]
    assert starts[0] != starts[1]


def test_a_gguf_file_has_the_kept_tokens(models: Path, tmp_path: Path) -> None:
    gguf: Any = pytest.importorskip("gguf")
    plan = plan_of(models, f'vocabulary {SIZE} on "TEXT"')
    [score] = gptailor.evaluate(plan, "bytes(gguf=f32)").results
    file = gptailor.compile(plan, tmp_path / "out.gguf", quantize="f32").folder
    assert isinstance(score.outcome, Score)
    assert score.outcome.value == file.stat().st_size
    gptailor.compile(plan, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert tokens == sorted(vocabulary, key=vocabulary.__getitem__)
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["token_embd.weight"][-1] == SIZE
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == vocabulary["<|im_end|>"]


def test_a_model_with_a_cut_vocabulary_learns_from_the_uncut_one(
    models: Path, tmp_path: Path
) -> None:
    text = 'vocabulary 270 on "TEXT"\nheal on "TEXT" tokens 2048 rank full'
    result = gptailor.compile(plan_of(models, text), tmp_path / "out")
    losses = result.fits["heal"].numbers
    assert 0 < losses["healed"] < losses["start"]


def test_another_tensor_of_tokens_is_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "base", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file) | {"model.embed_tokens_per_layer.weight": torch.zeros(368, 4)}
    save_file(tensors, file, {"format": "pt"})
    plan = plan_of(tmp_path, f'vocabulary {SIZE} on "{models / "text.txt"}"', "model")
    [fault] = gptailor.check(plan)
    assert fault.code == "M240"
    assert "'model.embed_tokens_per_layer.weight' has a row for each token" in fault.message


def test_a_search_chooses_the_size(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "space.tailor"
    path.write_text(
        f'tailor 1\nmodel base = "{models / "base"}"\n'
        f'vocabulary 270..360 step 30 on "{models / "text.txt"}"\ndrop any 1..2 of L1..L3\n'
        f'search {{ minimize nll("{models / "rows.jsonl"}"); trials 6; fidelity 4 }}\n'
    )
    result = gptailor.search(gptailor.load(path), tmp_path / "run")
    assert result.best is not None
    ledger = result.summary.ledger
    assert ledger.aims[0].unit == ledger.loss_unit == "bits a byte"
    best = gptailor.load(result.best)
    assert best.vocabulary is not None
    assert best.vocabulary.size in range(270, 361, 30)
    gptailor.compile(best, tmp_path / "out")


def test_a_small_search_may_need_a_small_vocabulary(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "space.tailor"
    head = f'tailor 1\nmodel base = "{models / "base"}"\nlet n = one of (270, 360)\n'
    search = f'search {{ minimize nll("{models / "rows.jsonl"}"); trials 4; fidelity 4; '
    size = gptailor.compile(plan_of(models, 'vocabulary 270 on "TEXT"'), tmp_path / "a").parameters
    vocabulary = f'vocabulary n on "{models / "text.txt"}"\n'
    path.write_text(f"{head}{vocabulary}{search}require parameters() <= {size} }}\n")
    best = gptailor.load(gptailor.search(gptailor.load(path), tmp_path / "run").best)
    assert best.numbers == {"n": 270}
    path.write_text(f"{head}{vocabulary}{search}require parameters() <= {size - 1} }}\n")
    with pytest.raises(PlanError, match="P609"):
        gptailor.search(gptailor.load(path), tmp_path / "run2")


def test_one_space_has_every_cut_of_a_mixture(models: Path, tmp_path: Path) -> None:
    """Layers, tokens and experts, with one bridge and one healing of the chosen plan."""
    base = tiny_model(
        "deepseek_v3", tmp_path / "base", vocab_size=368, n_group=1, topk_group=1,
        bos_token_id=356, eos_token_id=358,
    )  # fmt: skip
    write_byte_level(base)
    plan = plan_of(
        models,
        'vocabulary 290..360 step 35 on "TEXT"\nexperts 2..4 step 1 on "TEXT" tokens 300\n'
        'maybe drop any 1..2 of L2..L4\nbridge on "TEXT" tokens 512\n'
        'heal on "TEXT" tokens 512 rank 2\n'
        f'search {{ minimize nll("{models / "rows.jsonl"}"); require parameters() <= 27k }}',
        str(base),
    )
    result = gptailor.search(plan, tmp_path / "run", trials=8)
    best = gptailor.load(tmp_path / "run" / "best.tailor")
    assert best.heal is not None
    out = gptailor.compile(best, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) <= 27_000
    assert "heal" in out.fits
    assert result.best is not None
