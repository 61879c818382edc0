"""A small model whose configuration, model and tokenizer are classes in Python files beside its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SAYS = "OWN CODE RAN"
CONFIG = """
from transformers import LlamaConfig
from .traces import leave
leave("configuration")

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODEL = """
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from .configuration_own import OwnConfig
from .traces import leave
leave("model")

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if output.logits is not None:
            output.logits = output.logits * 1.0
        return output

class OwnForSequenceClassification(LlamaForSequenceClassification):
    config_class = OwnConfig
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast
from .traces import leave
leave("tokenizer")

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
TRACES = """
import os, sys
from pathlib import Path

def leave(name):
    print({says!r}, name)
    with open({place!r}, "a") as file:
        file.write(f"{{name}} {{os.getpid()}}\\n")
"""
PLACES = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForCausalLM": "modeling_own.OwnModel",
    "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
}


def save_own_model(plain: Path, folder: Path) -> Path:
    """Copy a Llama into a folder as a model with code of its own, which leaves a line in `traces` of each import."""
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    kind = "OwnForSequenceClassification" if "Classification" in config["architectures"][0] else "OwnModel"
    config |= {"model_type": "own_llama", "architectures": [kind], "auto_map": PLACES}
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    traces = TRACES.format(says=SAYS, place=str(folder / "traces"))
    for name, text in (
        ("configuration_own", CONFIG), ("modeling_own", MODEL), ("tokenization_own", TOKENIZER), ("traces", traces),
    ):  # fmt: skip
        (folder / f"{name}.py").write_text(text)
    return folder


def processes(folder: Path) -> set[int]:
    """Return the processes in which the code of the model ran."""
    file = folder / "traces"
    return {int(line.split()[1]) for line in file.read_text().splitlines()} if file.exists() else set()
