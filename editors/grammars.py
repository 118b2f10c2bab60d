"""Writes the TextMate grammar of plans, from the words that the language itself knows.

`python editors/grammars.py` writes it, `--check` says whether it is up to date.
"""

import json
import sys
from pathlib import Path
from typing import Any

from gptailor.plugins.highlight.word_groups import word_groups

FOLDER = Path(__file__).parent / "vscode" / "syntaxes"
NAME = r"[^\W\d]\w*"
LAYER = r"\bL\d+\b"
NUMBER = r"(?:(?<=\.\.)|(?<![\w.]))[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+|[kMGT])?(?!\w)"


def _any(*groups: str) -> str:
    """One of the words of these groups, the longest first."""
    words = {word for group in groups for word in word_groups()[group]}
    return "|".join(sorted(words, key=lambda word: (-len(word), word)))


def _rule(scope: str, match: str) -> dict[str, str]:
    return {"name": f"{scope}.tailor", "match": match}


def _captured(match: str, *scopes: str) -> dict[str, Any]:
    """A rule whose captures have a scope each."""
    captures = {str(i): {"name": f"{scope}.tailor"} for i, scope in enumerate(scopes, 1)}
    return {"match": match, "captures": captures}


def grammar() -> dict[str, Any]:
    """The grammar of a plan."""
    keywords = _any("statement", "choice", "within")
    return {
        "name": "Tailor",
        "scopeName": "source.tailor",
        "fileTypes": ["tailor"],
        "patterns": [{"include": "#all"}],
        "repository": {
            "all": {
                "patterns": [
                    {"include": f"#{name}"}
                    for name in ("comment", "string", "declaration", "dtype", "call", "words")
                ]
            },
            "comment": {"patterns": [_rule("comment.line.number-sign", r"#.*$")]},
            "string": {
                "patterns": [
                    {
                        "name": "string.quoted.double.tailor",
                        "begin": '"',
                        "end": r'"|(?=$)',
                    }
                ]
            },
            "declaration": {
                "patterns": [
                    _captured(r"^\s*(tailor)\s+(\d+)", "keyword.control", "constant.numeric"),
                    _captured(
                        rf"(?:^|(?<=;))\s*(model)\s+({NAME})",
                        "storage.type",
                        "entity.name.type.model",
                    ),
                    _captured(
                        rf"(?:^|(?<=;))\s*(let)\s+({NAME})",
                        "storage.type",
                        "variable.other.constant.number",
                    ),
                ]
            },
            "dtype": {
                "patterns": [
                    _captured(
                        rf"\b(dtype|gguf)\s+({_any('dtype', 'file type')})\b",
                        "keyword.control",
                        "constant.language.dtype",
                    )
                ]
            },
            "call": {
                "patterns": [
                    _arguments("method", "entity.name.function.method"),
                    _arguments("objective", "support.function.objective"),
                    _arguments("function", "support.function"),
                ]
            },
            "words": {
                "patterns": [
                    _rule("constant.numeric.layer", LAYER),
                    _captured(
                        rf"(\.)((?:{_any('branch')})(?:\.(?:{_any('role')}))?|{_any('norms')})\b",
                        "punctuation.accessor",
                        "variable.other.property.part",
                    ),
                    _rule("keyword.operator.range", r"\.\."),
                    _rule("keyword.operator", r"[<>]=?|=|\+|\*|@"),
                    _rule("constant.numeric", NUMBER),
                    _rule("keyword.other.choice", rf"(?<![\w.])(?:{_any('choice')})(?!\w)"),
                    _rule("keyword.control", rf"(?<![\w.])(?:{keywords})(?!\w)"),
                    _rule("punctuation.accessor", r"\."),
                    _rule("punctuation.separator", r"[,;]"),
                    _rule("punctuation.section.brackets", r"[(){}]"),
                    _rule("variable.other.model", rf"(?<![\w.]){NAME}"),
                ]
            },
        },
    }


def _arguments(group: str, scope: str) -> dict[str, Any]:
    """A call with its arguments, in which names before `=` are parameters'."""
    return {
        "begin": rf"(?<![\w.])({_any(group)})\s*(\()",
        "beginCaptures": {
            "1": {"name": f"{scope}.tailor"},
            "2": {"name": "punctuation.section.arguments.begin.tailor"},
        },
        "end": r"\)",
        "endCaptures": {"0": {"name": "punctuation.section.arguments.end.tailor"}},
        "patterns": [
            _rule("variable.parameter", rf"(?<![\w.]){NAME}(?=\s*=)"),
            _rule("constant.language.setting", rf"(?<==)\s*(?:{_any('setting')})\b"),
            {
                "begin": r"\(",
                "beginCaptures": {"0": {"name": "punctuation.section.brackets.begin.tailor"}},
                "end": r"\)",
                "endCaptures": {"0": {"name": "punctuation.section.brackets.end.tailor"}},
                "patterns": [{"include": "#all"}],
            },
            {"include": "#all"},
        ],
    }


def markdown() -> dict[str, Any]:
    """Plans in blocks of Markdown."""
    fence = r"(^|\G)(\s*)(`{3,}|~{3,})"
    return {
        "scopeName": "markdown.tailor.codeblock",
        "injectionSelector": "L:text.html.markdown",
        "patterns": [
            {
                "name": "markup.fenced_code.block.markdown",
                "begin": rf"{fence}\s*(tailor)\b.*$",
                "end": r"(^|\G)(\2|\s{0,3})(\3)\s*$",
                "patterns": [
                    {
                        "begin": r"(^|\G)(\s*)(.*)",
                        "while": r"(^|\G)(?!\s*([`~]{3,})\s*$)",
                        "contentName": "meta.embedded.block.tailor",
                        "patterns": [{"include": "source.tailor"}],
                    }
                ],
            }
        ],
    }


def texts() -> dict[Path, str]:
    """The files, and what is in them."""
    made = {"tailor.tmLanguage.json": grammar(), "markdown.json": markdown()}
    return {
        FOLDER / name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for name, content in made.items()
    }


def main() -> None:
    """Write the files; with `--check` end with 1 where one differs."""
    made = texts().items()
    old = [path for path, text in made if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        sys.exit(f"not up to date: {', '.join(path.name for path in old)}" if old else 0)
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts()[path], encoding="utf-8")


if __name__ == "__main__":
    main()
