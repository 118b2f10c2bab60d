from gptailor.build.compile import ComputeOptions as ComputeOptions
from gptailor.build.compile import Written as Written
from gptailor.build.compile import compile as compile
from gptailor.build.extract import Extracted as Extracted
from gptailor.build.extract import extract_lora as extract_lora
from gptailor.build.lock import Lock as Lock
from gptailor.build.lock_recording import lock as lock
from gptailor.build.state_dicts import merge as merge
from gptailor.build.verification import Verified as Verified
from gptailor.build.verify import verify as verify
from gptailor.evaluate.heal.teach import WrittenPredictions as WrittenPredictions
from gptailor.evaluate.heal.teach import teach as teach
from gptailor.evaluate.judge import judge as judge
from gptailor.evaluate.repair import stitch as stitch
from gptailor.evaluate.scores import Judgement as Judgement
from gptailor.lang.format import format as format
from gptailor.lang.parse import load as load
from gptailor.lang.parse import loads as loads
from gptailor.plan.faults import Fault as Fault
from gptailor.plan.faults import PlanError as PlanError
from gptailor.plan.faults import TailorError as TailorError
from gptailor.plan.plan import Plan as Plan
from gptailor.prepare import check as check
from gptailor.search.search import search as search

__version__: str
