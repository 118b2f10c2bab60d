"""Colours for Tailor text in whatever asks Pygments: a site, a terminal, Sphinx, a notebook.

The words are the grammar's, so that a new one is coloured once it can be parsed.
"""

import re
from typing import ClassVar, final

from pygments.lexer import RegexLexer, bygroups, default, include, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from gptailor.plugins.highlight.word_groups import word_groups

_WORDS = word_groups()


@final
class TailorLexer(RegexLexer):
    """The Tailor language.

    A keyword has its colour everywhere, except as an argument's name or a part. Only a
    parser could tell a keyword from a model of the same name.
    """

    name = "Tailor"
    aliases: ClassVar = ["tailor"]
    filenames: ClassVar = ["*.tailor"]
    mimetypes: ClassVar = ["text/x-tailor"]
    flags = re.MULTILINE
    tokens: ClassVar = {
        "root": [
            (r"\(", Punctuation, "arguments"),
            (r"(model|let)([ \t]+)([^\W\d][\w-]*)", bygroups(Keyword, Whitespace, Name.Variable)),
            include("text"),
        ],
        "arguments": [
            (r"\(", Punctuation, "#push"),
            (r"\)", Punctuation, "#pop"),
            (r"([^\W\d][\w-]*)(\s*)(=)", bygroups(Name.Attribute, Whitespace, Operator)),
            include("text"),
            (r"\n", Whitespace),
            default("#pop"),
        ],
        "text": [
            (r"[ \t\r]+", Whitespace),
            (r"#.*$", Comment.Single),
            (r'"[^"\r\n]*"', String.Double),
            (r"L[0-9]+(?!\w)", Name.Constant),
            (r"(\.)([^\W\d][\w-]*)", bygroups(Punctuation, Name.Attribute)),
            (r"\.\.", Operator),
            (r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?[kMGT]?(?!\w)", Number),
            (words(_WORDS["choice"], suffix=r"(?![\w-])"), Keyword.Pseudo),
            (words(_WORDS["statement"] + _WORDS["within"], suffix=r"(?![\w-])"), Keyword),
            (r"[^\W\d][\w-]*(?=\()", Name.Function),
            (r"[^\W\d][\w-]*", Name),
            (r"[<>]=?|[=+*@]", Operator),
            (r"[,;{}.]", Punctuation),
        ],
    }
