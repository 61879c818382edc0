"""The files of each export target, and folders that appear complete or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import align_here
from exported import Make
from hub_push import COMMIT, hub
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from stored import add, named
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_core.artifacts import ArtifactStore
from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES
from alignment_core.errors import ConfigError, ModelError
from alignment_core.export import process
from alignment_core.export.atomic_folder import atomic_folder
from alignment_core.export.request import Exported, Request
from alignment_core.inference.trained_model import TrainedModel

ALIGN = [sys.executable, "-P", "-c", "from alignment_flows.cli.app import main; main()"]


def export(origin: TrainedModel, target: str, place: Path) -> Exported:
    return process.run(Request(store=origin.store, key=origin.artifact.key, target=target, place=place))  # type: ignore[arg-type]


def test_adapter_opens_in_plain_peft_with_its_template(trained: Make, tmp_path: Path) -> None:
    origin, out = trained(), tmp_path / "a" / "model"
    done = export(origin, "adapter", out)
    assert done.place == str(out)
    ids = torch.tensor([[4, 8, 15, 16, 23, 42]])
    with torch.no_grad():
        ours = AutoPeftModelForCausalLM.from_pretrained(origin.folder)(input_ids=ids).logits
        theirs = AutoPeftModelForCausalLM.from_pretrained(out)(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(origin.base)(input_ids=ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, base, atol=0.1)
    assert AutoTokenizer.from_pretrained(out).chat_template == origin.template
    assert json.loads((out / "export.json").read_text())["target"] == "adapter"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


def test_ollama_gets_a_merged_model_and_a_modelfile(trained: Make, tmp_path: Path) -> None:
    origin, out = trained(), tmp_path / "out"
    done = export(origin, "ollama", out)
    assert (out / "Modelfile").read_text() == (
        "FROM .\n"
        'TEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "user" }}{{ "User: " }}{{ .Content }}{{ "\\n" }}'
        '{{ else if eq .Role "assistant" }}{{ "Assistant: " }}{{ .Content }}{{ "</s>\\n" }}'
        '{{ else if eq .Role "system" }}{{ .Content }}{{ "\\n\\n" }}{{ end }}{{ end }}{{ "Assistant:" }}"""\n'
        'PARAMETER stop "</s>"\n'
        "PARAMETER num_ctx 512\n"
    )
    assert json.loads((out / "tokenizer_config.json").read_text())["add_bos_token"] is True
    assert done.found["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_every_stop_token_is_in_the_form_of_ollama_and_of_vllm(trained: Make, tmp_path: Path) -> None:
    # This template ends an answer with <s> = 1, in addition to the tokenizer's </s> = 2.
    origin = trained(template=BUILTIN_TEMPLATES["plain"].replace("eos_token", "'<s>'"))
    export(origin, "ollama", tmp_path / "ollama")
    export(origin, "vllm", tmp_path / "vllm")
    modelfile = (tmp_path / "ollama" / "Modelfile").read_text()
    assert [line for line in modelfile.splitlines() if "stop" in line] == [
        'PARAMETER stop "<s>"', 'PARAMETER stop "</s>"',
    ]  # fmt: skip
    settings = json.loads((tmp_path / "vllm" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [1, 2]
    assert f"--generation-config {tmp_path / 'vllm'}" in (tmp_path / "vllm" / "serve.sh").read_text()


def test_ollama_refuses_unsupported_architectures(
    trained: Make, architecture: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"cannot read models of this architecture.*GPT2LMHeadModel"):
        export(trained(architecture("gpt2")), "ollama", tmp_path / "out")


# --- the model card -----------------------------------------------------------------------------------------------


def test_card_lists_data_settings_metrics_and_lineage(trained: Make, tmp_path: Path) -> None:
    store, data = ArtifactStore(tmp_path / "store"), named("d", "ingest")
    sft = named("5", "sft", {"data": data})
    add(
        store, data,
        inputs={"sources": [{"path": "hf://me/thumbs", "revision": "abc"}, {"path": "/home/me/secret/pairs.jsonl"}]},
        metrics={
            "rows": {"train": {"preferences": 90}, "held_out": {"preferences": 10}}, "quarantined": {"no_prompt": 3},
            "duplicates": {"exact": 2, "near": 1},
        },
    )  # fmt: skip
    add(store, sft)
    origin = trained(parents={"data": data, "sft": sft})
    same = {"data": data, "sft": sft}
    add(store, named("", "evaluate", same), metrics={"kl": 0.0, "perplexity": 5.0, "warnings": []})
    evaluated = named("", "evaluate", same | {"policy": origin.artifact.key})
    add(store, evaluated, metrics={"kl": 1.5, "perplexity": 6.0})
    export(origin, "adapter", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "base_model_relation": "adapter", "datasets": ["me/thumbs"], "library_name": "peft",
        "pipeline_tag": "text-generation", "tags": ["alignment-flows", "dpo", "lora"],
    }  # fmt: skip
    for line in (
        "- me/thumbs at abc", "- pairs.jsonl", "| preferences | 90 | 10 |", "| kl | 0 | 1.5 |",
        "| perplexity | 5 | 6 |",
        f"| sft | `{sft}` |", f"| optimize | `{origin.artifact.key}` |", "  beta: 0.1",
    ):  # fmt: skip
        assert line in card.text, card.text
    assert "Rows left out: quarantined 3, exact duplicates 2, near-duplicates 1." in card.text
    assert "secret" not in card.text, "the card must not contain local paths"


# --- atomic folders -----------------------------------------------------------------------------------------------


def test_existing_folder_is_refused_and_not_changed(trained: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="the folder already exists"):
        export(trained(), "adapter", out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_folder_is_removed_when_filling_it_fails(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("half")
            assert not (tmp_path / "out").exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_second_export_to_the_same_folder_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "first").write_text("")
        with (
            pytest.raises(ConfigError, match="another export is writing to this folder"),
            atomic_folder(tmp_path / "out"),
        ):
            pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]


def test_killed_export_leaves_no_folder_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from alignment_core.export.atomic_folder import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half'); print('filling', flush=True); time.sleep(600)"
    )
    place = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        process.send_signal(signal.SIGKILL)
    assert not place.exists()
    with atomic_folder(place) as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in place.iterdir()] == ["whole"]


# --- the command --------------------------------------------------------------------------------------------------


def align(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([*ALIGN, *map(str, arguments)], capture_output=True, text=True, check=False, env=env)


@pytest.mark.ci
def test_command_exports_an_alias_and_refuses_an_existing_folder(trained: Make, tmp_path: Path) -> None:
    origin, out = trained(), tmp_path / "out"
    ArtifactStore(origin.store).aliases.promote("production", "optimize", origin.artifact.key, by="me", reason="best")
    command = ("export", "production", "--to", "merged", "--out", out, "--store", origin.store)
    done = align(*command, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["place"], result["key"]) == (str(out), origin.artifact.key)
    assert result["found"]["after_rounding"]["largest_difference"] <= result["found"]["after_rounding"]["tolerance"]
    assert result["use"] == [f"vllm serve {out}"]
    again = align(*command)
    assert (again.returncode, again.stderr) == (
        2, f"align: --out: the folder already exists. got {out}. Choose a new folder.\n",
    )  # fmt: skip


def test_errors_are_one_paragraph(trained: Make, tmp_path: Path) -> None:
    origin = trained()
    reward = named("7", "reward")
    add(ArtifactStore(origin.store), reward)
    place = ("--store", str(origin.store), "--out", str(tmp_path / "out"))
    key = origin.artifact.key
    for arguments, message in (
        (("nobody", "--to", "adapter", *place), "this is no alias"),
        (
            (reward, "--to", "adapter", *place),
            f"{reward}, of kind reward, expected one of kind optimize or sft",
        ),
        ((key, "--to", "adapter", "--store", str(origin.store)), "--out: the output folder is missing"),
        ((key, "--to", "hub", *place), "--repo: the Hub target needs a repository"),
        ((key, "--to", "adapter", *place, "--repo", "a/b"), "--repo: only the Hub target accepts a repository"),
    ):
        done = align_here("export", *arguments)
        assert done.returncode == 2
        assert message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_changed_base_is_refused(trained: Make, architecture: Callable[..., Path], tmp_path: Path) -> None:
    folder = architecture("llama")
    origin = trained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no longer the one that the adapter was trained on"):
        export(origin, "adapter", tmp_path / "out")


@pytest.mark.ci
def test_hub_gets_adapter_and_card_in_one_commit_and_no_token_is_stored(trained: Make, tmp_path: Path) -> None:
    origin, home = trained(), tmp_path / "hf-home"
    command = ("export", origin.artifact.key, "--to", "hub", "--repo", "me/mine", "--private", "--json")
    with hub() as received:
        env = {"HF_ENDPOINT": received.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_TOKEN": "hf_secret"}
        done = align(*command, "--store", origin.store, **env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["found"] == {"commit": COMMIT}
    assert received.repositories["me/mine"]["visibility"] == "private"
    assert received.tokens == {"Bearer hf_secret"}
    files = received.files["me/mine"]
    assert files["adapter_model.safetensors"] == (origin.folder / "adapter_model.safetensors").read_bytes()
    assert {"README.md", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= files.keys()
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == Path(origin.base).name
    assert 'from_pretrained("me/mine")' in files["README.md"].decode()
    everything = b"".join(files.values()) + done.stdout.encode()
    assert str(origin.base).encode() not in everything
    written = [path for folder in (tmp_path,) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if b"hf_secret" in path.read_bytes()]


@pytest.mark.ci
def test_hub_errors_are_reported(trained: Make, tmp_path: Path) -> None:
    origin = trained()
    command = ("export", origin.artifact.key, "--to", "hub", "--store", origin.store, "--repo")
    env = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf-home")}
    with hub(denied=True) as received:
        denied = align(*command, "me/mine", HF_ENDPOINT=received.url, HF_TOKEN="hf_secret", **env)
        without = align(*command, "me/mine", HF_ENDPOINT=received.url, HF_TOKEN="", **env)
    gone = align(*command, "me/mine", HF_ENDPOINT=received.url, HF_TOKEN="hf_secret", **env)
    for done, message in (
        (denied, "--repo me/mine: the Hub rejected the adapter. got "),
        (without, "HF_TOKEN: the Hub needs a token"),
        (gone, "--repo me/mine: the Hub cannot be reached"),
    ):
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr
