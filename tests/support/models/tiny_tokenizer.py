"""A small byte-level BPE tokenizer with `<pad>` = 0, `<s>` = 1 (prepended to every text) and `</s>` = 2."""

from __future__ import annotations

from typing import Any

SENTENCES = (
    "Once upon a time there was a little dog who liked to play in the park with a red ball.",
    "The weather is sunny today, so we can walk to the river and look at the boats.",
    "Please tell me how to bake bread. Mix flour, water, salt and yeast, then wait and bake it.",
    "No, I do not think that is right. Yes, you are right, thank you very much!",
    "What is two plus three? Two plus three is five.",
    "Human: Can you help me? Assistant: Of course, what would you like to know?",
)


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    bpe.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
