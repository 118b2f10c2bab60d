"""Fits of closed plans: what each is, and a plan with the results of some."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, NoReturn, final

import torch
from torch import Tensor

from gptailor.checkpoint.families.layout import name_of
from gptailor.checkpoint.write.digest import FileDigest
from gptailor.evaluation.fits.bridge.states import FitTexts
from gptailor.evaluation.fits.kept_tensors import Kept
from gptailor.evaluation.live.content_keys import ModelContents
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.methods import rounding
from gptailor.plan.events import FitResult, FitText, OnEvent
from gptailor.plan.faults import CodedError
from gptailor.plan.resolved import Resolved
from gptailor.program.compile import compile_plan
from gptailor.program.program import Output
from gptailor.program.sources import Checked

LayerChanges = Mapping[int, Mapping[str, Tensor]]
"""Tensors of the output's layers by their numbers, then by their names within a layer."""


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """A closed plan beside its models with the results of fits, by their places.

    `checked` has the experts that stay. `changes` are fitted tensors on the CPU by the words of
    fits, in their order of effect. `narrowed` are those of narrower MLPs in each layer of the plan
    with nothing dropped.
    """

    checked: Checked
    results: Mapping[str, FitResult] = field(default_factory=dict)
    changes: Mapping[str, LayerChanges] = field(default_factory=dict)
    narrowed: tuple[Mapping[str, Tensor], ...] = ()

    @property
    def resolved(self) -> Resolved:
        """The plan with the experts that stay."""
        return self.checked.resolved

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The changed tensors by their names in the output."""
        return {
            name_of(self.checked.base.layout, index, name): tensor
            for changes in self.changes.values()
            for index, changed in changes.items()
            for name, tensor in changed.items()
        }

    def contents(self, stitcher: Stitcher) -> ModelContents:
        """Return the contents of the plan's live model with the changed tensors."""
        contents = stitcher.contents(self.resolved)
        for changes in self.changes.values():
            contents = stitcher.table.with_fitted(contents, changes)
        return contents

    @cached_property
    def chosen(self) -> dict[str, Output]:
        """The outputs of the experts that stay, by their names."""
        if self.resolved.kept_experts is None:
            return {}
        outputs = compile_plan(self.checked, repaired=False).program.outputs
        return {output.spec.name: output for output in outputs}

    def having(self, changes: LayerChanges, *results: FitResult) -> "Fitted":
        """Return the plan with more results of one fit, and the tensors that it changed."""
        return replace(
            self,
            results={**self.results, **{result.at: result for result in results}},
            changes={**self.changes, results[0].word: changes},
        )


def fit_texts(*texts: tuple[FileDigest, int]) -> tuple[FitText, ...]:
    """Return the texts of a fit's result: files' digests, and the tokens used."""
    return tuple(FitText(digest.size, digest.sha256, tokens) for digest, tokens in texts)


def in_dtype(tensor: Tensor, dtype: str, error: CodedError) -> Tensor:
    """Return a fitted tensor in a dtype, rounded once, on the CPU.

    Raises the error where the dtype can't hold a value.
    """

    def refuse(_: int) -> NoReturn:
        raise error

    rounded: Tensor = rounding.rounded(tensor, dtype, refuse)
    return rounded.contiguous().cpu()


class Fit(ABC):
    """A fit of closed plans over a stitcher's models, whose results change tensors.

    Results are kept for other plans and on this machine. With `anew` none of an earlier process is
    reused. While a plan is fitted, the stitcher leaves room for the sums.
    """

    folder: ClassVar[str]
    """The name of the folder of kept results."""
    wide: ClassVar[bool] = True
    """True if the models compute in float32 in place of the live models' dtype."""

    def __init__(self, stitcher: Stitcher, *, anew: bool = False) -> None:
        self.stitcher = stitcher
        self.anew = anew
        self.table = stitcher.table
        self.place = stitcher.device if stitcher.memory is None else torch.device("cpu")
        self.layout = self.table.models["base"].layout
        self.texts = FitTexts(self.table.models)
        self.kept = Kept(self.folder, anew=anew)

    @property
    def devices(self) -> Sequence[str]:
        """The types of the devices that compute and that hold states, for a key."""
        return self.stitcher.device.type, self.place.type

    @staticmethod
    @abstractmethod
    def wanted(checked: Checked) -> bool:
        """Return whether a closed plan has this fit."""

    @abstractmethod
    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan that has this fit with its result too, and report new ones' progress.

        Raises CalibrationError for a text that doesn't serve, BridgeError or HealError for a plan
        that can't be fitted.
        """
