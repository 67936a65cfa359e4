"""The base model's tokenizer: byte-level BPE, so that any Unicode round-trips, with every digit a token of its own."""

from random import Random
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recipes.skills import SKILLS, draw
from recipes.tickets import ticket_rows

PAD: Final[str] = "<|pad|>"
START: Final[str] = "<|im_start|>"
END: Final[str] = "<|im_end|>"
#: The special tokens have the ids below this.
NUM_SPECIAL: Final[int] = 3
PAD_ID: Final[int] = 0
VOCAB_SIZE: Final[int] = 1536
MAX_TOKENS: Final[int] = 2048

#: ChatML. What the model is to write itself, its closing token included, stands between the generation markers.
CHAT_TEMPLATE: Final[str] = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- message['content'] + '<|im_end|>' -}}"
    "{%- endif -%}"
    "{{- '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def corpus(seed: int) -> list[str]:
    """Texts to learn the merges from: training items of every skill, tickets (other ones than the demo's), and the
    template's role words."""
    rng = Random(f"{seed}|tokenizer")
    texts: list[str] = []
    for skill in (skill for skill in SKILLS if skill.share):
        for _ in range(2000):
            item = draw(skill, rng, "train")
            texts += [f"user\n{item.question}", f"assistant\n{item.answer}"]
    for row in ticket_rows({"other": 3000}, seed + 1)["other"]:
        texts += [f"{message['role']}\n{message['content']}" for message in row["messages"]]
    return texts + ["system\n"] * 500


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the spot (seconds); the same seed gives the same file."""
    tokenizer = Tokenizer(models.BPE())
    # Digits first: a merge can then never join two of them, and a number is as long as it looks.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, seen in the corpus or not
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
