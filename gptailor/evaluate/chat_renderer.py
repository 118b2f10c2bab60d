"""A program that renders one chat template within bounds; `chat.py` starts it.

It reads a JSON object from standard input and prints a JSON object with `text` or `error`. A
template is a stranger's program: it can fill the memory with one product of a text and a number,
loop without an end, or recurse. Only a process can be limited in all three.
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
    """Limit the bytes and processor seconds that this process takes from now on."""
    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    until = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, until))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        rendered: Any = render_jinja_template(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["tokens"],
        )
    except MemoryError:
        return {"error": f"needs more than {request['memory'] >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "calls itself without an end"}
    except Exception as error:  # noqa: BLE001 (a template raises anything)
        return {"error": f"fails: {str(error).strip() or type(error).__name__}"}
    text = str(rendered[0][0])
    if len(text) > request["longest"]:
        return {"error": f"gives {len(text):,} characters, more than {request['longest']:,}"}
    return {"text": text}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    _limit(request["memory"], request["seconds"])
    sys.stdout.write(json.dumps(_answer(request)))
