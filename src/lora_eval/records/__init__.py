"""What flows between the stages: immutable, written once, read strictly. No library but pydantic."""

from lora_eval.records.base import Record
from lora_eval.records.comparison import (
    Arm,
    ArmRun,
    Comparison,
    Look,
    Pair,
    Sequential,
    SequentialTask,
    SuitePair,
    SuiteScore,
    TaskComparison,
    VariancePart,
    Verdict,
)
from lora_eval.records.export import MergeAudit, TensorAudit
from lora_eval.records.gate import Gate, GateCheck, GateResult, GateRule, GateVerdict
from lora_eval.records.judging import (
    AlpacaScore,
    BradleyTerry,
    CategoryScore,
    Figures,
    JudgeReport,
    JudgeSuite,
    LengthAdjusted,
    MtBenchScore,
    PairCounts,
    PairRate,
    ScoreDifference,
    Strength,
)
from lora_eval.records.publication import Publication
from lora_eval.records.recipe import DataSection, FamilyCheck, Hardware, Recipe
from lora_eval.records.reference import ReferenceCheck
from lora_eval.records.run import LoadedRun, Run, SampleRow, TaskResult, Work
from lora_eval.records.suite import EvalSuite, TaskEntry
from lora_eval.records.template import ChatTemplate
from lora_eval.records.training import LossPoint, ReloadCheck, RowCounts, TrainingLog
from lora_eval.records.variant import Lineage, Step, Variant, VariantKind
from lora_eval.records.verification import Divergence, Verification

__all__ = [
    "AlpacaScore",
    "Arm",
    "ArmRun",
    "BradleyTerry",
    "CategoryScore",
    "ChatTemplate",
    "Comparison",
    "DataSection",
    "Divergence",
    "EvalSuite",
    "FamilyCheck",
    "Figures",
    "Gate",
    "GateCheck",
    "GateResult",
    "GateRule",
    "GateVerdict",
    "Hardware",
    "JudgeReport",
    "JudgeSuite",
    "LengthAdjusted",
    "Lineage",
    "LoadedRun",
    "Look",
    "LossPoint",
    "MergeAudit",
    "MtBenchScore",
    "Pair",
    "PairCounts",
    "PairRate",
    "Publication",
    "Recipe",
    "Record",
    "ReferenceCheck",
    "ReloadCheck",
    "RowCounts",
    "Run",
    "SampleRow",
    "ScoreDifference",
    "Sequential",
    "SequentialTask",
    "Step",
    "Strength",
    "SuitePair",
    "SuiteScore",
    "TaskComparison",
    "TaskEntry",
    "TaskResult",
    "TensorAudit",
    "TrainingLog",
    "VariancePart",
    "Variant",
    "VariantKind",
    "Verdict",
    "Verification",
    "Work",
]
