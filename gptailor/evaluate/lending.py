"""A live model's layers whose tensors come when they run, also within the model's own forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, final

from torch import nn

from gptailor.evaluate.contents import Content
from gptailor.evaluate.modules import Named, fill_module
from gptailor.evaluate.streaming import Streaming


@final
class Lent:
    """A layer of a live model: its module, filled while it is used and hollow otherwise."""

    def __init__(
        self, module: nn.Module, content: Content, hollow: Named, streaming: Streaming
    ) -> None:
        self.module = module
        self.content = content
        self.hollow = hollow
        self.streaming = streaming
        self.following: Content | None = None
        self._held = 0
        self._running = 0
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after, always_call=True)

    @contextmanager
    def held(self) -> Iterator[nn.Module]:
        """The layer, ready; the next one begins to come."""
        self._enter()
        self._held += 1
        try:
            yield self.module
        finally:
            self._held -= 1
            self._leave()

    def _before(self, module: nn.Module, arguments: Any) -> None:
        self._enter()
        self._running += 1

    def _after(self, module: nn.Module, arguments: Any, result: Any) -> None:
        if self._running:  # 0 if a hook before ours has failed
            self._running -= 1
            self._leave()

    def _enter(self) -> None:
        if not self._held + self._running:
            fill_module(self.module, self.streaming.enter(self.content))
            if self.following is not None:
                self.streaming.prefetch(self.following)

    def _leave(self) -> None:
        if not self._held + self._running:
            fill_module(self.module, self.hollow)
            self.streaming.leave(self.content)


def lend(
    modules: Sequence[nn.Module],
    contents: Sequence[Content],
    hollow: Sequence[Named],
    streaming: Streaming,
) -> tuple[Lent, ...]:
    """All layers of a model, each with the one that follows it."""
    lent = tuple(
        Lent(module, content, empty, streaming)
        for module, content, empty in zip(modules, contents, hollow, strict=True)
    )
    for each, after in pairwise(lent):
        each.following = after.content
    return lent
