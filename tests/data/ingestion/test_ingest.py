"""Ingestion end to end on generated files: identity, shards, quarantine, weights and the report."""

from __future__ import annotations

import gc
import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.data.ingestion import shard_cache
from alignment_core.data.ingestion.check import check, no_usable_rows
from alignment_core.data.ingestion.ingest import _libraries_frozen, ingest
from alignment_core.data.ingestion.remedies import Ratings
from alignment_core.data.ingestion.report.page import html_report, markdown_report
from alignment_core.data.ingestion.report.tables import tables
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.data.sources.identity import source_identity
from alignment_core.data.sources.parsing.judgments import labelled_response
from alignment_core.errors import DataError
from alignment_core.progress import Silent, Stopped
from alignment_core.records.format import BadRow


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Question {i * 7919} of {i * 104729}?",
            "chosen": f"Yes {i * 31} indeed",
            "rejected": f"No {i * 37} never",
        }
        for i in range(start, start + count)
    ]


def write(path: Path, data: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, renderer: Renderer) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Return a function that ingests sources (paths or SourceConfig fields) into a new folder."""
    made: list[Path] = []

    def go(*sources: Any, store: ArtifactStore | None = None, **settings: Any) -> tuple[dict[str, Any], Path]:
        out = tmp_path / f"out{len(made)}"
        out.mkdir()
        made.append(out)
        configs = [SourceConfig(**item) if isinstance(item, dict) else SourceConfig(path=str(item)) for item in sources]
        data = DataConfig(sources=configs, **settings)
        return ingest(data, renderer, out, Silent(), store=store, identity={"tokenizer": "test"}), out

    return go


# --- identity -----------------------------------------------------------------------------------------------------


def key(path: Path, **settings: Any) -> dict[str, Any]:
    return source_identity(SourceConfig(path=str(path), **settings)).key


def test_identity_depends_on_content_not_location(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "rows.jsonl", rows(3))
    moved = tmp_path / "b" / "other.jsonl"
    moved.parent.mkdir()
    shutil.copy(first, moved)
    first.touch()
    assert key(first) == key(moved) == key(first.parent) == key(tmp_path / "b" / "*.jsonl")
    assert json.loads(json.dumps(key(first))) == key(first)
    assert str(tmp_path) not in json.dumps(key(first))


def test_identity_changes_with_rows_and_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(3))
    before = key(path)
    assert key(path, format="pairs") != before
    assert key(path, columns={"prompt": "p"}) != before
    assert key(path, threshold=1.0) != before
    assert key(path, weight=0.5) != before
    write(path, rows(4))
    assert key(path) != before


def test_identity_of_a_folder_does_not_depend_on_the_order_of_its_files(tmp_path: Path) -> None:
    for folder, names in (("a", "xy"), ("b", "yx")):
        for index, name in enumerate(names):
            write(tmp_path / folder / f"{name}.jsonl", rows(2, start=2 * index))
    assert key(tmp_path / "a") == key(tmp_path / "b")


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere.jsonl", "no such file"), ("*.jsonl", "matches at least one"), ("empty", "no readable files")],
)
def test_missing_source_is_a_clear_error(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        source_identity(SourceConfig(path=str(tmp_path / path)))
    assert path in str(caught.value)


def test_a_url_is_read_through_fsspec(run: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, data in (("one.jsonl", rows(5)), ("two.jsonl", rows(5, 5))):
        memory.pipe(f"/feedback/{name}", "\n".join(map(json.dumps, data)).encode())
    report, _ = run("memory://feedback")
    assert {file["name"] for file in report["files"]} == {"one.jsonl", "two.jsonl"}
    assert report["rows"]["train"]["preferences"] + report["rows"]["held_out"]["preferences"] == 10
    single, _ = run("memory://feedback/one.jsonl")
    assert single["files"][0]["rows"] == 5
    before = source_identity(SourceConfig(path="memory://feedback")).key
    memory.pipe("/feedback/one.jsonl", b'{"prompt": "other"}')
    assert source_identity(SourceConfig(path="memory://feedback")).key != before
    with pytest.raises(DataError, match="memory://nowhere"):
        source_identity(SourceConfig(path="memory://nowhere"))


# --- shards -------------------------------------------------------------------------------------------------------


def test_second_run_reads_only_the_new_file(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = ArtifactStore(tmp_path / "store"), tmp_path / "data"
    write(folder / "a.jsonl", rows(40))
    write(folder / "b.jsonl", rows(40, 40))
    run(folder, store=store)
    made: list[str] = []
    make = shard_cache._make
    monkeypatch.setattr(shard_cache, "_make", lambda item, *rest: (made.append(item.name), make(item, *rest))[1])
    write(folder / "c.jsonl", rows(40, 80))
    report, out = run(folder, store=store)
    assert made == ["c.jsonl"]
    assert {file["name"]: file["reused"] for file in report["files"]} == {
        "a.jsonl": True,
        "b.jsonl": True,
        "c.jsonl": False,
    }
    fresh, other = run(folder)
    for split in ("train", "held_out"):
        for name in ("preferences.arrow", "feedback.arrow", "tokens.arrow", "records.jsonl"):
            assert (out / split / name).read_bytes() == (other / split / name).read_bytes()
    assert fresh["rows"] == report["rows"]


def test_renamed_file_is_reused_and_shown_by_its_new_name(tmp_path: Path, run: Any) -> None:
    store = ArtifactStore(tmp_path / "store")
    path = write(tmp_path / "old.jsonl", [*rows(20), {"prompt": "q"}])
    run(path, store=store, max_bad_fraction=1.0)
    path.rename(tmp_path / "new.jsonl")
    report, out = run(tmp_path / "new.jsonl", store=store, max_bad_fraction=1.0)
    assert report["files"][0]["reused"]
    assert report["examples"]["other_format"][0]["origin"] == "new.jsonl:21"
    assert "old.jsonl" not in (out / "train" / "records.jsonl").read_text()


def test_shard_is_not_reused_with_other_settings(tmp_path: Path, run: Any) -> None:
    store = ArtifactStore(tmp_path / "store")
    ratings = [{"prompt": f"q {i * 7919}", "completion": f"a {i * 31}", "rating": i % 6} for i in range(60)]
    path = write(tmp_path / "rows.jsonl", ratings)
    low, _ = run({"path": str(path), "threshold": 1}, store=store)
    high, _ = run({"path": str(path), "threshold": 5}, store=store)
    assert low["balance"]["desirable"] > 3 * high["balance"]["desirable"]
    assert not high["files"][0]["reused"]


def test_stopping_leaves_no_partial_shard(tmp_path: Path, renderer: Renderer) -> None:
    class StopRequested(Silent):
        stopping = True

    store = ArtifactStore(tmp_path / "store")
    path = write(tmp_path / "rows.jsonl", rows(5))
    with pytest.raises(Stopped):
        ingest(DataConfig(sources=[SourceConfig(path=str(path))]), renderer, tmp_path, StopRequested(), store=store)
    assert not list((tmp_path / "store").glob("shard/*"))


# --- bad rows -----------------------------------------------------------------------------------------------------


def test_quarantined_rows_can_be_fixed_and_ingested_again(tmp_path: Path, run: Any) -> None:
    bad = [
        {"prompt": "Broken?", "chosen": "same", "rejected": "same"},
        {"prompt": None, "chosen": "a", "rejected": "b"},
    ]
    path = write(tmp_path / "rows.jsonl", [*rows(10), *bad])
    path.write_text(path.read_text() + '{"prompt": "half', encoding="utf-8")
    report, out = run(path, max_bad_fraction=0.5)
    assert report["quarantined"] == {"identical_completions": 1, "empty_prompt": 1, "invalid_json": 1}
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in lines] == ["rows.jsonl:11", "rows.jsonl:12", "rows.jsonl:13"]
    assert lines[0]["row"] == bad[0]
    lines[0]["row"]["rejected"] = "other"
    lines[1]["row"]["prompt"] = "Now there?"
    fixed, _ = run(write(tmp_path / "mended.jsonl", lines[:2]))
    assert fixed["files"][0]["format"] == "pairs"
    assert sum(fixed["rows"][split]["preferences"] for split in fixed["rows"]) == 2


def test_rows_that_are_too_long_can_be_ingested_again_from_quarantine(tmp_path: Path, run: Any) -> None:
    long = {"prompt": "q", "chosen": "x" * 900, "rejected": "y"}
    report, out = run(write(tmp_path / "rows.jsonl", [*rows(5), long]))
    assert report["quarantined"] == {"completion_too_long": 1}
    again, _ = run(out / "quarantine.jsonl", rows_file := write(tmp_path / "more.jsonl", rows(3)))
    assert rows_file.exists()
    assert again["files"][0]["format"] == "pairs"
    assert again["quarantined"] == {"completion_too_long": 1}


def test_too_many_bad_rows_fail_before_anything_is_written(tmp_path: Path, run: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(9), {"prompt": "q", "chosen": "", "rejected": "b"}])
    with pytest.raises(DataError, match=r"1 of 10 .*empty_completion 1") as caught:
        run(path)
    assert "at most 5 %" in str(caught.value)
    assert not (tmp_path / "out0" / "train").exists()
    run(path, max_bad_fraction=0.1)


def test_rows_that_are_too_long_do_not_count_as_bad(tmp_path: Path, run: Any) -> None:
    long = [{"prompt": f"q{i}", "chosen": "x" * 900, "rejected": "y"} for i in range(5)]
    report, _ = run(write(tmp_path / "rows.jsonl", [*rows(5), *long]))
    assert report["fit"]["too_long"] == 5
    assert any("max_length" in warning for warning in report["warnings"])
    with pytest.raises(DataError, match=r"model\.max_length"):
        run(write(tmp_path / "long.jsonl", long))


@pytest.mark.parametrize("data", ["", "\n\n", "[]", "not json at all"])
def test_file_without_rows_is_a_clear_error(tmp_path: Path, run: Any, data: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(data)
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        run(path, max_bad_fraction=1.0)


def test_unreadable_and_unknown_files_among_good_ones_are_quarantined(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "data" / "good.jsonl", rows(20))
    write(tmp_path / "data" / "strange.jsonl", [{"colour": "red"}])
    (tmp_path / "data" / "broken.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "data" / "notes.md").write_text("not data")
    (tmp_path / "data" / "empty.json").write_text("")
    report, _ = run(tmp_path / "data", max_bad_fraction=0.2)
    assert report["quarantined"] == {"unknown_format": 1, "unreadable_file": 1}
    assert {file["name"] for file in report["files"]} == {
        "good.jsonl",
        "strange.jsonl",
        "broken.jsonl.gz",
        "empty.json",
    }


def test_missing_columns_are_listed(tmp_path: Path, run: Any) -> None:
    path = write(tmp_path / "rows.jsonl", rows(3))
    for columns, message in (
        ({"prompt": "question", "completion": "chosen"}, "question.*chosen, prompt, rejected"),
        ({"query": "prompt"}, "not standard columns.*query"),
        ({"margin": "prompt"}, "do not form a record"),
    ):
        with pytest.raises(DataError, match=message):
            run({"path": str(path), "columns": columns})
    with pytest.raises(DataError, match="Did you mean 'pairs'"):
        run({"path": str(path), "format": "pair"})


def test_labels_of_one_class_cause_a_warning(tmp_path: Path, run: Any) -> None:
    labels = [{"prompt": f"q {i * 77}", "completion": f"a {i * 7}", "label": True} for i in range(20)]
    report, _ = run(write(tmp_path / "rows.jsonl", labels))
    assert any("one class" in warning for warning in report["warnings"])
    assert report["balance"]["suggested"] == {}


def test_pair_of_two_labelled_rows_has_one_prompt_that_fits_both(tmp_path: Path, run: Any) -> None:
    """The prompt of the long response is truncated further. The pair uses the shorter prompt for both sides."""
    question = " ".join(f"word{i}" for i in range(80))
    labels = [{"prompt": question, "completion": "short", "label": True},
              {"prompt": question, "completion": "long " * 50, "label": False}]  # fmt: skip
    _, out = run(write(tmp_path / "rows.jsonl", [*labels, {"prompt": "other", "completion": "x", "label": True}]))
    data = read_dataset(out)
    (pair,) = [*data.train.preferences, *data.held_out.preferences]
    chosen, rejected = pair.sequences["chosen"], pair.sequences["rejected"]
    assert chosen.prompt == rejected.prompt
    assert len(rejected.ids) <= 512
    answers = {row.sequences["response"].completion for row in [*data.train.feedback, *data.held_out.feedback]}
    assert {chosen.completion, rejected.completion} <= answers
    assert len(rejected.completion) > len(chosen.completion) > 1
    assert (
        max(len(row.sequences["response"].prompt) for row in [*data.train.feedback, *data.held_out.feedback])
        > chosen.start
    )


# --- several sources ----------------------------------------------------------------------------------------------


def test_weights_repeat_and_sample_training_rows(tmp_path: Path, run: Any) -> None:
    path = write(tmp_path / "rows.jsonl", rows(100))
    once, first = run(path)
    twice, second = run({"path": str(path), "weight": 2.0})
    assert twice["rows"]["held_out"] == once["rows"]["held_out"]
    for kind, count in once["rows"]["train"].items():
        assert twice["rows"]["train"][kind] == 2 * count
        kept, copied = (list(getattr(read_dataset(out).train, kind)) for out in (first, second))
        assert len({row.id for row in copied}) == 2 * len(kept)
    some, _ = run({"path": str(path), "weight": 1.3}, held_out_fraction=0.2)
    plain, _ = run(path, held_out_fraction=0.2)
    grown = some["rows"]["train"]["preferences"] / plain["rows"]["train"]["preferences"]
    assert 1.1 < grown < 1.5


def test_scores_in_another_file_of_the_source_are_joined(tmp_path: Path, run: Any) -> None:
    calls = [{"id": f"o{i}", "trace_id": f"t{i}", "input": f"q {i * 77}", "output": f"a {i}"} for i in range(12)]
    scores = [{"trace_id": f"t{i}", "name": "thumbs", "value": i % 2} for i in range(12)]
    write(tmp_path / "data" / "observations.jsonl", calls)
    write(tmp_path / "data" / "scores.jsonl", scores)
    report, _ = run(tmp_path / "data")
    assert report["balance"]["desirable"] + report["balance"]["undesirable"] >= 10
    assert report["quarantined"] == {}
    assert len(report["files"]) == 1


# --- the report ---------------------------------------------------------------------------------------------------


def test_report_contents(tmp_path: Path, run: Any, renderer: Renderer) -> None:
    report, out = run(
        write(tmp_path / "rows.jsonl", [*rows(50), *rows(2), {"prompt": "q|x", "chosen": "s", "rejected": "s"}])
    )
    assert report == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["files"][0]["format"] == "pairs"
    assert report["files"][0]["rows"] == 53
    assert report["duplicates"]["exact"] == 2
    train = report["rows"]["train"]
    assert train["preferences"] + report["rows"]["held_out"]["preferences"] == 50
    assert report["balance"] == {
        "desirable": train["preferences"], "undesirable": train["preferences"],
        "suggested": {"lambda_D": 1.0, "lambda_U": 1.0},
    }  # fmt: skip
    assert report["overlap"] == {"prompts": 0, "conversations": 0}
    lengths = sorted(len(row.sequences["prompt"].ids) for row in read_dataset(out).train.prompts)
    assert report["lengths"]["prompts"]["max"] == lengths[-1]
    demonstrations = [row.sequences["demonstration"] for row in read_dataset(out).train.demonstrations]
    tokens, targets = sum(len(item.ids) for item in demonstrations), sum(item.targets for item in demonstrations)
    assert report["targets"] == {"tokens": tokens, "targets": targets, "masked_share": round(1 - targets / tokens, 4)}
    sample = report["samples"][0]
    assert "".join(part["text"] for part in sample["runs"] if part["target"]).endswith("</s>")


def test_report_pages_are_complete_and_escape_user_text(tmp_path: Path, run: Any) -> None:
    sides = [(f"<b>{i}</b> ~~~", f"n{i}") for i in range(30)]
    nasty = [
        {"prompt": f"<script>alert({i * 99})</script> | {i * 77}", "chosen": chosen, "rejected": rejected}
        for i, (chosen, rejected) in enumerate(sides)
    ]
    _, out = run(write(tmp_path / "rows.jsonl", nasty))
    html, markdown = ((out / f"report.{form}").read_text(encoding="utf-8") for form in ("html", "md"))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<mark>" in html
    assert "data:image/svg+xml;base64," in markdown
    assert "⟦" in markdown
    assert len(markdown) < 200_000
    assert markdown.count("~~~") % 2 == 0
    assert not re.search(r"{{|{%|Undefined", html + markdown)


def test_suggested_kto_weights_balance_the_classes(tmp_path: Path, run: Any) -> None:
    """With 30 liked and 10 disliked responses, the rarer class has weight 1 and the other 10/30."""
    labels = [{"prompt": f"q {i * 7919}", "completion": f"a {i * 31}", "label": i % 4 != 0} for i in range(40)]
    report, _ = run(write(tmp_path / "rows.jsonl", labels), held_out_fraction=0.0001)
    balance = report["balance"]
    assert balance["desirable"] + balance["undesirable"] == 39
    weights = balance["suggested"]
    assert weights["lambda_U"] == 1.0
    assert weights["lambda_D"] * balance["desirable"] == pytest.approx(balance["undesirable"], abs=0.01)


def test_check_needs_no_model_and_reports_quarantined_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(5), {"prompt": "q"}, {"prompt": "q"}])
    report = check([str(path)])
    assert report["quarantined"] == {"other_format": 2}
    assert report["unit"] == "bytes"
    assert report["fit"]["max_length"] is None
    text = markdown_report(report)
    assert "other_format" in text
    assert "bytes" in text
    assert "rows.jsonl:6" in text
    kept = check([str(path)], out=tmp_path / "kept")
    assert (tmp_path / "kept" / "report.html").exists()
    assert kept["rows"] == report["rows"]


def test_check_reports_files_without_usable_rows(tmp_path: Path) -> None:
    ratings = [{"prompt": f"q{i}", "completion": f"a{i}", "rating": i} for i in range(5)]
    path = write(tmp_path / "ratings.jsonl", ratings)
    report = check([str(path)], out=tmp_path / "none")
    assert report["quarantined"] == {"no_threshold": 5}
    assert report["examples"]["no_threshold"][0]["origin"] == "ratings.jsonl:1"
    # The ratings are 0 to 4: their middle is 2, and 3 is the first above it.
    assert report["thresholds"] == [3.0]
    assert "(no_threshold 5). Say from where on a rating is a thumbs up: `--threshold 3`" in str(no_usable_rows(report))
    assert report["warnings"][0].startswith("Left out 5 rows. Say from where on a rating is a thumbs up:")
    assert [table.head[0] for table in tables(report)] == ["left out", "file"]
    rated = check([str(path)], source={"threshold": 3}, held_out_fraction=0.4)
    assert no_usable_rows(rated) is None
    assert sum(split["feedback"] for split in rated["rows"].values()) == 5
    assert rated["thresholds"] == [None]
    unknown = check([str(write(tmp_path / "unknown.jsonl", [{"frage": "q", "antwort": "a"}]))])
    assert "columns antwort, frage" in str(no_usable_rows(unknown))
    with pytest.raises(DataError, match="the file has no such columns"):
        check([str(path)], source={"columns": {"prompt": "frage"}})


@pytest.mark.parametrize(
    ("ratings", "threshold"),
    [([1, 2, 3, 4, 5], 4), ([0.1, 1], 1), ([-1.0, 0.25, 1.0], 0.25), ([1, 10, 7], 7), ([3, 3], None), ([], None)],
)
def test_threshold_is_the_first_rating_above_the_middle(ratings: list[float], threshold: float | None) -> None:
    found = Ratings()
    for rating in ratings:
        with pytest.raises(BadRow) as bad:
            labelled_response((), (), rating, "o", SourceConfig(path="x"), column="my stars")
        found.add(bad.value.detail)
    assert found.threshold() == threshold


def test_labels_that_are_no_known_words_are_asked_for(tmp_path: Path) -> None:
    labels = [{"prompt": f"q{i}", "completion": f"a{i}", "label": ("ja", "nein")[i % 2]} for i in range(4)]
    report = check([str(write(tmp_path / "labels.jsonl", labels))])
    assert "Say which labels are a thumbs up: `--desirable WORD`" in str(no_usable_rows(report))
    assert no_usable_rows(check([str(tmp_path / "labels.jsonl")], source={"desirable": ["ja"]})) is None


def test_lone_surrogates_are_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in [*rows(5), {**rows(1)[0], "chosen": "\ud800"}]]
    path.write_text("\n".join(lines), encoding="utf-8")
    report = check([str(path)], out=tmp_path / "out")
    assert report["quarantined"] == {"undecodable_text": 1}
    (bad,) = (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(bad)["row"]["chosen"] == "\ud800"


def test_a_system_turn_alone_is_a_prompt(tmp_path: Path) -> None:
    """The model then opens the conversation. Two such prompts differ by what their system turns say."""
    told = ["You greet whoever comes in.", "You ask a riddle.", "You ask a riddle."]
    path = write(tmp_path / "told.jsonl", [{"prompt": [{"role": "system", "content": text}]} for text in told])
    report = check([str(path)])
    assert (report["used"], report["duplicates"]["exact"]) == ({"records": 2, "of": 3}, 1)


def test_near_duplicate_detection_can_be_disabled(tmp_path: Path, run: Any) -> None:
    report, _ = run(write(tmp_path / "rows.jsonl", rows(5)), near_duplicates=None)
    assert report["duplicates"]["near"] == 0


def test_check_counts_with_the_models_tokenizer(tmp_path: Path, tiny_model: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(5))
    report = check([str(path)], model=str(tiny_model), max_length=64)
    assert report["unit"] == "tokens"
    assert report["lengths"]["prompts"]["max"] <= 48


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), container=st.sampled_from(["jsonl", "json", "csv", "jsonl.gz", "parquet"]))
def test_damaged_files_always_yield_a_report(data: st.DataObject, container: str, tmp_path: Path) -> None:
    """Overwrite, remove and insert bytes anywhere: the report has rows or reasons, and no exception is raised."""
    whole = _packed([{**row, "margin": 1.5} for row in rows(12)], container, tmp_path)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(start + 40, len(whole))))
        whole = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
    path = tmp_path / f"damaged.{container}"
    path.write_bytes(whole)
    report = check([str(path)])
    html_report(report)
    used = sum(split["preferences"] for split in report["rows"].values())
    assert used or report["quarantined"] or not report["files"][0]["rows"]


def _packed(values: list[dict[str, Any]], container: str, folder: Path) -> bytes:
    lines = "\n".join(map(json.dumps, values)).encode()
    match container:
        case "json":
            return json.dumps(values, indent=1).encode()
        case "csv":
            return "\n".join([",".join(values[0]), *(",".join(map(str, row.values())) for row in values)]).encode()
        case "jsonl.gz":
            return gzip.compress(lines)
        case "parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(values), folder / "whole.parquet")
            return (folder / "whole.parquet").read_bytes()
    return lines


def test_libraries_are_frozen_only_meanwhile() -> None:
    assert gc.get_freeze_count() == 0
    with _libraries_frozen():
        assert gc.get_freeze_count() > 0
        with _libraries_frozen():
            pass
        assert gc.get_freeze_count() > 0, "a forked stage stays as it was"
    assert gc.get_freeze_count() == 0
