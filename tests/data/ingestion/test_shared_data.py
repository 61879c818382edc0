"""Every real file is read and yields exactly the expected kinds of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.dataset.kinds import KINDS
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.data.ingestion.ingest import ingest
from alignment_core.data.rendering.renderer import Renderer, generation_stops, load_tokenizer
from alignment_core.errors import DataError
from alignment_core.progress import Silent

ALL = frozenset(KINDS)
SFT_KINDS = frozenset({"demonstrations", "prompts"})
NO_PROMPT = ALL - {"prompts"}
PERSONA = {"prompt": "question", "chosen": "answer_matching_behavior", "rejected": "answer_not_matching_behavior"}
XSTEST = {"prompt": "prompt", "completion": "completion", "label": "final_label"}

# file: (settings, format, number of rows read, kinds of rows it yields)
FILES: dict[str, tuple[dict[str, Any], str, int, frozenset[str]]] = {
    "feedback_unpaired/gsm8k_model_solutions.rows0000-0899.jsonl": ({}, "graded_solutions", 900, ALL),
    "feedback_unpaired/kto_en_demo.rows000-199.json": ({}, "labelled", 200, ALL),
    "feedback_unpaired/truthfulqa_finetune_info_dev.jsonl": ({}, "demonstrations", 1814, SFT_KINDS),
    "feedback_unpaired/truthfulqa_finetune_truth_dev.jsonl": ({}, "demonstrations", 1814, SFT_KINDS),
    "feedback_unpaired/xstest_v2_completions_gpt4.csv": (
        {"columns": XSTEST, "desirable": ["1_full_compliance"]}, "columns", 317, ALL - {"preferences"},
    ),
    "feedback_unpaired/xstest_v2_completions_llama2new.csv": (
        {"columns": {"prompt": "prompt", "completion": "completion"}}, "columns", 317, SFT_KINDS,
    ),
    "preference/anthropic_evals_persona_agreeableness.jsonl": ({"columns": PERSONA}, "columns", 1000, ALL),
    "preference/anthropic_evals_persona_conscientiousness.jsonl": ({"columns": PERSONA}, "columns", 1000, ALL),
    "preference/hh_rlhf/harmless-base-test.rows0000-1199.jsonl.gz": ({}, "anthropic_hh", 1200, ALL),
    "preference/hh_rlhf/helpful-base-test.jsonl.gz": ({}, "anthropic_hh", 2354, ALL),
    "preference/hh_rlhf/helpful-online-test.jsonl.gz": ({}, "anthropic_hh", 1137, ALL),
    "preference/pandalm_testset.rows000-649.json": ({}, "pandalm", 650, ALL),
    "preference/sharegpt_dpo_en_demo.rows000-199.json": ({}, "sharegpt", 200, ALL),
    "preference/truthfulqa.shared70pct.csv": (
        {"columns": {"prompt": "Question", "chosen": "Best Answer", "rejected": "Best Incorrect Answer"}},
        "columns", 562, ALL,
    ),
    "preference/v1_dpo_demo.head.jsonl": ({}, "pairs", 6, ALL),
    "sentiment/amazon_cells_labelled.txt": ({"columns": {"completion": "0", "label": "1"}}, "columns", 1000, NO_PROMPT),
    "sentiment/imdb_labelled.txt": ({"columns": {"completion": "0", "label": "1"}}, "columns", 1000, NO_PROMPT),
    "sentiment/vader_lexicon.txt": (
        {"columns": {"completion": "0", "rating": "1"}, "threshold": 0.0}, "columns", 7520, NO_PROMPT,
    ),
    "sft/alpaca_en_demo.rows000-799.json": ({}, "alpaca", 800, SFT_KINDS),
    "sft/self_instruct_seed_tasks.jsonl": ({}, "self_instruct", 175, SFT_KINDS),
    "sft/sharegpt_dummy_conversation.json": ({}, "sharegpt", 500, SFT_KINDS),
    "sft/sharegpt_toolcall_en_demo.rows000-199.json": ({}, "sharegpt", 200, SFT_KINDS),
    "sft/tinystories_10k.txt": ({}, "demonstrations", 9297, frozenset({"demonstrations"})),
    "trees/oasst1_en_validation_messages.trees70pct.jsonl": ({}, "openassistant_messages", 1357, ALL),
    "trees/oasst_en_100_tree.rows00-69.jsonl": ({}, "openassistant_trees", 70, ALL),
}  # fmt: skip


@pytest.fixture(scope="module")
def stories_renderer(stories260k: Path) -> Renderer:
    path = str(stories260k)
    return Renderer(load_tokenizer(path), chat_template=None, max_length=2048, generation_stops=generation_stops(path))


def test_every_shared_file_is_tested(shared_data: Path) -> None:
    files = {path.relative_to(shared_data).as_posix() for path in shared_data.rglob("*") if path.is_file()}
    assert {file for file in files if not file.startswith(("models/", "SOURCES"))} == set(FILES)


@pytest.mark.ci
@pytest.mark.parametrize("file", FILES)
def test_file(file: str, shared_data: Path, stories_renderer: Renderer, tmp_path: Path) -> None:
    settings, format_, rows, kinds = FILES[file]
    source = SourceConfig(path=str(shared_data / file), **settings)
    report = ingest(DataConfig(sources=[source], held_out_fraction=0.1), stories_renderer, tmp_path, Silent())
    assert (report["files"][0]["format"], report["files"][0]["rows"]) == (format_, rows)
    assert {kind for kind, count in report["rows"]["train"].items() if count} == kinds
    assert report["overlap"] == {"prompts": 0, "conversations": 0}
    data = read_dataset(tmp_path)
    for split in (data.train, data.held_out):
        for kind in KINDS:
            for row in list(getattr(split, kind))[:200]:
                for name, sequence in row.sequences.items():
                    assert 0 < len(sequence.ids) <= 2048
                    if name != "prompt":
                        assert sequence.ids[-1] == stories_renderer.stop_ids[0]
                        assert sequence.targets > 1
    # Nearly all rows are used, except those dropped for a named reason or for their length.
    unusable = sum(report["quarantined"].values()) - report["fit"]["too_long"]
    assert unusable <= 0.05 * rows


@pytest.mark.parametrize(
    ("file", "listed"),
    [("preference/anthropic_evals_persona_agreeableness.jsonl", "answer_matching_behavior"),
     ("feedback_unpaired/xstest_v2_completions_gpt4.csv", "`annotation_1` .maybe a judgment.*`final_label`"),
     ("sentiment/imdb_labelled.txt", "columns 0, 1")],
)  # fmt: skip
def test_missing_column_map_error_lists_the_columns(
    file: str, listed: str, shared_data: Path, stories_renderer: Renderer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=listed):
        ingest(DataConfig(sources=[SourceConfig(path=str(shared_data / file))]), stories_renderer, tmp_path, Silent())


def test_hh_pairs_differ_in_their_last_response(shared_data: Path, stories_renderer: Renderer, tmp_path: Path) -> None:
    """Compare with the raw file, parsed in the simplest way."""
    import gzip
    import json

    file = shared_data / "preference/hh_rlhf/helpful-online-test.jsonl.gz"
    ingest(DataConfig(sources=[SourceConfig(path=str(file))]), stories_renderer, tmp_path, Silent())
    with gzip.open(file, "rt", encoding="utf-8") as raw:
        rows = [json.loads(line) for line in raw]
    checked = 0
    texts = [(tmp_path / split / "records.jsonl").read_text(encoding="utf-8") for split in ("train", "held_out")]
    for line in map(json.loads, "".join(texts).splitlines()):
        row = rows[int(line["origin"].rpartition(":")[2]) - 1]
        for side in ("chosen", "rejected"):
            assert [turn["role"] for turn in line[side]] == ["assistant"]
            assert row[side].rstrip().removesuffix("\n\nHuman").rstrip().endswith(line[side][0]["content"])
        assert line["prompt"][-1]["role"] == "user"
        assert line["prompt"][-1]["content"] in row["chosen"]
        checked += 1
    assert checked > 1000
