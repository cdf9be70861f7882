"""Tasks, templates and verifiers, and the data module that makes batches of them."""

from veto_pl.data.collate import Collator, Encoded
from veto_pl.data.datamodule import PromptDataModule
from veto_pl.data.encoding import EncodedRows
from veto_pl.data.example_rows import ExampleStream, StoredExamples, stored
from veto_pl.data.fingerprints import source_key
from veto_pl.data.functions import FunctionReward, FunctionTemplate
from veto_pl.data.mathematics import MathAnswer, final_answer
from veto_pl.data.overlap import rouge
from veto_pl.data.rewards import ExactMatch, LastNumber, NoReward, RougeL, final_number
from veto_pl.data.row_file import RowFile, read_examples
from veto_pl.data.sampler import RankSampler, even_batches
from veto_pl.data.tasks import GSM8K, MBPP, Chat, DataSet, DialogSum, HumanEval, JsonLines, Mixed, ReasoningGym, Rows
from veto_pl.data.tasks.judged import Judged
from veto_pl.data.templates import BySource, ChatTemplate, PlainTemplate, TemplateMixture
from veto_pl.seams import pad_left

__all__ = [
    "GSM8K",
    "MBPP",
    "BySource",
    "Chat",
    "ChatTemplate",
    "Collator",
    "DataSet",
    "DialogSum",
    "Encoded",
    "EncodedRows",
    "ExactMatch",
    "ExampleStream",
    "FunctionReward",
    "FunctionTemplate",
    "HumanEval",
    "JsonLines",
    "Judged",
    "LastNumber",
    "MathAnswer",
    "Mixed",
    "NoReward",
    "PlainTemplate",
    "PromptDataModule",
    "RankSampler",
    "ReasoningGym",
    "RougeL",
    "RowFile",
    "Rows",
    "StoredExamples",
    "TemplateMixture",
    "even_batches",
    "final_answer",
    "final_number",
    "pad_left",
    "read_examples",
    "rouge",
    "source_key",
    "stored",
]
