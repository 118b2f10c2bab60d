"""Print the error after a bridge over each gap of a model, for docs/pictures/gaps.json.

    python benchmarks/gaps.py MODEL TEXT --widest 10 --what 'SmolLM2, …' > docs/pictures/gaps.json

The command reads 4096 tokens of the text once. Each layer before a gap has a row, with a number for
each width: the mean squared distance between the bridged state and the state without a gap,
relative to its length. A search orders cuts by the same numbers (docs/search_internals.md).
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import gptailor
from gptailor.evaluation.fits.bridge.gaps import GAP_TOKENS, plan_gap_errors
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.prepare import ready


def main() -> None:
    """Print the figures of one model on one text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("text", type=Path, help="calibration text, as for a bridge")
    parser.add_argument("--widest", type=int, default=10, help="layers of the widest gap")
    parser.add_argument("--what", default="", help="model and text, in words")
    given = parser.parse_args()
    base = f'tailor 1\nmodel base = "{given.model.resolve()}"\n'
    prepared = ready(gptailor.loads(base))
    live = Stitcher(prepared.models).stitch(prepared.plan)
    bridged = gptailor.loads(f'{base}drop L1\nbridge on "{given.text.resolve()}"\n')
    left = plan_gap_errors(live, bridged, prepared.plan, prepared.models, given.widest)
    rounded = [[round(one, 4) for one in row] for row in left]
    print(json.dumps({"what": given.what, "tokens": GAP_TOKENS, "left": rounded}))


if __name__ == "__main__":
    main()
