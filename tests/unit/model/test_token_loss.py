"""The packed, masked, chunked loss against plain transformers on the same documents, one at a time, unpacked."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from support.tiny import SIZES, VOCAB, make_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distributed_ft.data.batches import MicroBatch
from distributed_ft.model import attention, token_loss
from distributed_ft.model.token_loss import TokenLoss, noisy

Document = tuple[Tensor, Tensor]  # token ids and whether each is supervised, both (length,)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {  # architecture, changes, our attention
    "llama": ("llama", {"tie_word_embeddings": False}, attention.PACKED_SDPA),
    "llama, eager": ("llama", {"tie_word_embeddings": False}, "eager"),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, attention.PACKED_SDPA),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}, attention.PACKED_SDPA),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}, attention.PACKED_SDPA),
    "qwen3": ("qwen3", {}, attention.PACKED_SDPA),
    "mistral, sliding window": ("mistral", {}, attention.PACKED_SDPA),
    "mistral, sliding window, eager": ("mistral", {}, "eager"),
    "gemma2, soft-capped logits, eager": ("gemma2", {}, "eager"),
}


def make_documents(lengths: tuple[int, ...] = (23, 5, 31, 2, 17, 1), seed: int = 3) -> list[Document]:
    """Random documents with supervised stretches in their second half; the third one has two of them."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for number, length in enumerate(lengths):
        supervised = torch.arange(length) >= length // 2
        if number == 2:
            supervised[3:6] = True
        documents.append((torch.randint(3, VOCAB, (length,), generator=generator), supervised))
    return documents


def packed(documents: list[Document]) -> MicroBatch:
    """Built here, by the contract, and not by the code that training uses."""
    positions, targets, begin = [], [], 0
    for ids, supervised in documents:
        for at in range(len(ids) - 1):
            if supervised[at + 1]:
                positions.append(begin + at)
                targets.append(int(ids[at + 1]))
        begin += len(ids)
    lengths = [len(ids) for ids, _ in documents]
    return MicroBatch(
        input_ids=torch.cat([ids for ids, _ in documents])[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        supervised=torch.tensor(positions, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
    )


def reference_loss(model: Any, documents: list[Document]) -> Tensor:
    """Summed over the supervised tokens, from transformers' own loss, a forward pass for each document."""
    total = torch.zeros(())
    for ids, supervised in documents:
        count = int(supervised[1:].sum())
        if count:
            labels = torch.where(supervised, ids, -100)[None]
            total = total + model(input_ids=ids[None], labels=labels, use_cache=False).loss * count
    return total


def training_copy(model: Any, implementation: str) -> Any:
    ours = copy.deepcopy(model)
    ours.config.use_cache = False
    ours.set_attn_implementation(implementation)
    return ours.train()


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows of logits at a time."""
    monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", 7 * VOCAB)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient_equal_plain_transformers_on_unpacked_documents(case: str, checkpointing: bool) -> None:
    architecture, changes, implementation = CASES[case]
    model = make_model(architecture, **changes).train()
    documents = make_documents()
    expected = reference_loss(model, documents)
    expected.backward()
    ours = training_copy(model, implementation)
    ours.zero_grad()
    if checkpointing:
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = TokenLoss(ours)(packed(documents))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same_gradients(ours, model)


@pytest.mark.usefixtures("_small_blocks")
def test_loss_and_gradient_of_an_adapted_model_equal_those_of_peft() -> None:
    model = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    documents = make_documents()
    expected = reference_loss(model, documents)
    expected.backward()
    ours = copy.deepcopy(model)
    ours.zero_grad()
    ours.set_attn_implementation(attention.PACKED_SDPA)
    loss = TokenLoss(ours)(packed(documents))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same_gradients(ours, model)


def assert_same_gradients(ours: nn.Module, reference: nn.Module) -> None:
    """To 1e-5 of each tensor's largest entry; for every trained parameter, and none where none is trained."""
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        grad = expected[name].grad
        assert (parameter.grad is None) == (grad is None), name
        if grad is not None:
            scale = float(grad.abs().max())
            assert scale > 0, f"{name}: nothing is compared"
            torch.testing.assert_close(
                parameter.grad, grad, rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("case", ["llama", "qwen2, tied", "gemma2, soft-capped logits, eager"])
def test_a_batch_without_targets_has_zero_loss_and_zero_gradients_for_every_parameter(case: str) -> None:
    architecture, changes, implementation = CASES[case]
    model = training_copy(make_model(architecture, **changes), implementation)
    document = (torch.arange(3, 12), torch.zeros(9, dtype=torch.bool))
    loss = TokenLoss(model)(packed([document, document]))
    loss.backward()
    assert loss.item() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("case", CASES)
def test_a_document_does_not_see_the_one_before_it(case: str) -> None:
    """Bit-equal: not a small influence, none at all."""
    architecture, changes, implementation = CASES[case]
    loss = TokenLoss(training_copy(make_model(architecture, **changes), implementation))
    first, second = make_documents((23, 31))
    unsupervised = torch.zeros(23, dtype=torch.bool)
    befores = (first[0], first[0].flip(0), torch.full((23,), 9))
    losses = [loss(packed([(ids, unsupervised), second])).item() for ids in befores]
    assert losses[0] == losses[1] == losses[2]
    changed = second[0].clone()
    changed[0] = 5
    assert loss(packed([(first[0], unsupervised), (changed, second[1])])).item() != losses[0]


def test_a_token_beyond_the_sliding_window_is_not_seen_and_one_inside_is() -> None:
    """Two layers of window 8 reach 14 tokens back."""
    model = training_copy(make_model("mistral"), attention.PACKED_SDPA)
    ids = torch.arange(10, 50)
    supervised = torch.zeros(40, dtype=torch.bool)
    supervised[-1] = True

    def last_loss(changed: int) -> float:
        other = ids.clone()
        other[changed] = 200
        return TokenLoss(model)(packed([(other, supervised)])).item()

    unchanged = TokenLoss(model)(packed([(ids, supervised)])).item()
    assert last_loss(38 - 15) == unchanged
    assert last_loss(38 - 14) != unchanged


class LargestVocabularyTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor, made in the block, whose last dimension is the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        weight = (SIZES["hidden_size"], VOCAB)  # the head's, transposed
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.ndim >= 2 and leaf.shape[-1] == VOCAB and leaf.shape != weight:
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.usefixtures("_small_blocks")
def test_logits_are_only_made_where_there_is_a_target_and_a_block_at_a_time() -> None:
    model = training_copy(make_model("llama"), attention.PACKED_SDPA)
    model.lm_head.requires_grad_(False)  # its gradient would be a tensor of hidden x vocabulary
    documents = make_documents((60, 60, 60))
    batch = packed(documents)
    assert len(batch.targets) > 10 * 7
    with LargestVocabularyTensor() as seen:
        TokenLoss(model)(batch).backward()
    assert 0 < seen.elements <= 7 * VOCAB


def test_block_size_does_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = training_copy(make_model("qwen2"), attention.PACKED_SDPA)
    batch = packed(make_documents())
    whole = TokenLoss(model)(batch)
    for rows in (1, 2, len(batch.targets) - 1, len(batch.targets)):
        monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", rows * VOCAB)
        torch.testing.assert_close(TokenLoss(model)(batch), whole, rtol=1e-6, atol=0)
    monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", VOCAB - 1)  # less than a row: still a row at a time
    torch.testing.assert_close(TokenLoss(model)(batch), whole, rtol=1e-6, atol=0)


def test_autocast_computes_in_bf16_and_returns_an_fp32_sum_near_the_fp32_one() -> None:
    model = training_copy(make_model("llama"), attention.PACKED_SDPA)
    batch = packed(make_documents())
    exact, rough = TokenLoss(model)(batch), TokenLoss(model, torch.bfloat16)(batch)
    assert rough.dtype == torch.float32
    assert rough.item() != exact.item()
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize("case", ["llama", "qwen2, tied", "qwen3", "mistral, sliding window", "gemma2, soft-capped"])
def test_documents_with_virtual_tokens_are_as_plain_peft_reads_each_alone(kind: str, case: str) -> None:
    architecture, _, tied = case.partition(", ")
    model = make_model(architecture, **({"tie_word_embeddings": True} if tied == "tied" else {})).train()
    torch.manual_seed(1)
    config = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}[kind]
    plain = get_peft_model(model, config(task_type="CAUSAL_LM", num_virtual_tokens=5))
    documents = make_documents()
    expected = reference_loss(plain, documents)
    expected.backward()
    ours = copy.deepcopy(plain)
    ours.zero_grad()
    if architecture != "gemma2":
        ours.get_base_model().set_attn_implementation("sdpa")
    loss = TokenLoss(ours)(packed(documents))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same_gradients(ours, plain)
    ours.zero_grad()
    nothing = (torch.arange(3, 12), torch.zeros(9, dtype=torch.bool))
    empty = TokenLoss(ours)(packed([nothing]))
    empty.backward()
    assert empty.item() == 0
    assert all(not p.grad.any() for p in ours.parameters() if p.requires_grad)


def test_neftune_adds_noise_by_the_length_of_each_document() -> None:
    torch.manual_seed(0)
    lengths = (4, 100, 9)
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    embedded = torch.randn(1, 113, 50)
    added = (noisy(embedded, boundaries, alpha=5.0) - embedded)[0]
    for begin, length in zip(boundaries, lengths, strict=False):
        bound = 5.0 / (length * 50) ** 0.5
        noise = added[begin : begin + length]
        assert 0.98 * bound < noise.abs().max() < 1.0001 * bound
        assert noise.mean().abs() < 0.2 * bound
        torch.testing.assert_close(noise.std(), torch.tensor(bound / 3**0.5), rtol=0.1, atol=0)


@pytest.mark.parametrize("case", ["llama", "gemma2, soft-capped logits, eager"])
def test_neftune_is_drawn_from_torchs_generator_and_only_while_training(case: str) -> None:
    architecture, changes, implementation = CASES[case]
    model, batch = training_copy(make_model(architecture, **changes), implementation), packed(make_documents())
    quiet, loss = TokenLoss(model), TokenLoss(model, neftune_alpha=5.0)

    def at(seed: int) -> float:
        torch.manual_seed(seed)
        return loss(batch).item()

    assert at(1) == at(1) != at(2) != quiet(batch).item()
    loss.eval()
    assert at(1) == at(2) == quiet(batch).item()
