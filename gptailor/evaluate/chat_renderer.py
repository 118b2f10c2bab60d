"""A program that renders one chat template within bounds; `chat.py` starts it.

It reads a JSON object from standard input and prints one: `text`, or `error`. A template is a
program of a stranger: it can fill the memory by one product of a text and a number, loop without
an end, or recurse. Only a process has bounds for all of these.
"""

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


def _limit(memory: int, seconds: int) -> None:
    """Limit what this process takes from now on: bytes, and seconds of a processor."""
    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    until = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, until))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(asked: dict[str, Any]) -> dict[str, str]:
    try:
        rendered: Any = render_jinja_template(
            conversations=[asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=True,
            **asked["tokens"],
        )
    except MemoryError:
        return {"error": f"needs more than {asked['memory'] >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "calls itself without an end"}
    except Exception as error:  # noqa: BLE001 (a template raises anything)
        return {"error": f"fails: {str(error).strip() or type(error).__name__}"}
    text = str(rendered[0][0])
    if len(text) > asked["longest"]:
        return {"error": f"gives {len(text):,} characters, more than {asked['longest']:,}"}
    return {"text": text}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    _limit(request["memory"], request["seconds"])
    sys.stdout.write(json.dumps(_answer(request)))
