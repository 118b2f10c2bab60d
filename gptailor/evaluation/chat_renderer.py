"""A program that renders chats by one template within bounds; `chat_text.py` starts it.

It reads a JSON object from standard input and prints a JSON object with `texts` or `error`. A
template is a stranger's program: it can fill the memory with one product of a text and a number,
loop without an end, or recurse. Only a process can be limited in all three. With a `date` templates
see that day as today.
"""

import json
import math
import resource
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, final

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template


def _limit(memory: int, seconds: int) -> None:
    """Limit the bytes and processor seconds that this process takes from now on."""
    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    until = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, until))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_today(date: str) -> None:
    """Let templates see a date as today."""

    @final
    class Today(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Today":
            return cls.fromisoformat(date).replace(tzinfo=tz)

    chat_template_utils.datetime = Today  # type: ignore[attr-defined]  # of `strftime_now`


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    texts = []
    try:
        for messages, begun in request["chats"]:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=request["template"],
                add_generation_prompt=begun,
                **request["tokens"],
            )
            texts.append(str(rendered[0][0]))
    except MemoryError:
        return {"error": f"needs more than {request['memory'] >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "calls itself endlessly"}
    except Exception as error:  # noqa: BLE001 (a template raises anything)
        return {"error": f"fails: {str(error).strip() or type(error).__name__}"}
    if (longest := sum(map(len, texts))) > request["longest"]:
        return {"error": f"gives {longest:,} characters, more than {request['longest']:,}"}
    return {"texts": texts}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    if request["date"] is not None:
        _set_today(request["date"])
    _limit(request["memory"], request["seconds"])
    sys.stdout.write(json.dumps(_answer(request)))
