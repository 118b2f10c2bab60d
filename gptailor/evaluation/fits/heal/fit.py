"""Healing as the last fit of a plan."""

from collections.abc import Hashable
from typing import final

from gptailor.evaluation.fits.fit import Fit, Fitted
from gptailor.evaluation.fits.heal.heal import HealedLayers, Healer
from gptailor.plan.events import OnEvent
from gptailor.prepare import calibration_path
from gptailor.program.sources import Checked


@final
class LayerHealer(Fit):
    """Heals plans, and keeps the layers of the last one."""

    folder = "healed"
    wide = False
    _healed: tuple[Hashable, HealedLayers] | None = None

    @staticmethod
    def wanted(checked: Checked) -> bool:
        """Return whether a plan heals."""
        return checked.resolved.healing is not None

    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan with its healed layers, after its other fits."""
        plan = fitted.resolved.declared  # equal plans in two folders have different texts
        key = plan, tuple(calibration_path(plan, file) for _, file in plan.calibration_texts)
        if self._healed is None or self._healed[0] != key:
            stitcher, changes = self.stitcher, fitted.changes
            healer = Healer(self.table.models, stitcher.device, stitcher.memory, anew=self.anew)
            narrowed, bridged = changes.get("width", {}), changes.get("bridge", {})
            self._healed = key, healer.heal(fitted.resolved, narrowed, bridged, on_event)
        healed = self._healed[1]
        return fitted.having(healed.tensors, healed.result)
