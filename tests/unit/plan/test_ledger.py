"""The ledger counts what tensors hold, when they hold it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distributed_ft.plan.ledger import Ledger, Watch

KIB = 1024


def filled(kib: int) -> torch.Tensor:
    return torch.zeros(kib * KIB, dtype=torch.uint8)


def test_the_fullest_moment_is_the_one_before_something_is_freed() -> None:
    ledger = Ledger()
    with Watch(ledger, vocabulary=7), ledger.during("work"):
        kept = filled(1)
        passing = filled(8)
        del passing
        also = filled(2)
    assert ledger.peaks()["work", ""] == {"activations": 9 * KIB}
    assert kept.numel() + also.numel() == 3 * KIB


def test_views_of_a_tensor_are_counted_once_and_hold_its_memory() -> None:
    ledger = Ledger()
    with Watch(ledger, vocabulary=7):
        with ledger.during("before"):
            view = filled(4)[:1]
        with ledger.during("after"):
            filled(1)
    assert ledger.peaks()["after", ""] == {"activations": 5 * KIB}
    assert view.numel() == 1


def test_memory_that_is_given_back_and_taken_again_counts_while_it_is_taken() -> None:
    ledger = Ledger()
    with Watch(ledger, vocabulary=7):
        tensor = filled(4)
        with ledger.during("back"):
            tensor.untyped_storage().resize_(0)
            filled(1)
        with ledger.during("again"):
            tensor.untyped_storage().resize_(4 * KIB)
    assert sum(ledger.peaks()["back", ""].values()) == 4 * KIB  # before it was given back
    ends = [block for block in ledger.blocks if block.died is None]
    assert [block.size for block in ends] == [4 * KIB]


def test_a_label_is_of_the_memory_however_early_it_was_allocated() -> None:
    ledger = Ledger(granule=512)
    with Watch(ledger, vocabulary=7), ledger.during("work"):
        weight, logits = torch.zeros(100), torch.zeros(2, 7)
    ledger.label([weight[3:]], "weights")
    assert ledger.peaks()["work", ""] == {"weights": 512, "logits": 512}
    assert logits.shape[-1] == 7


def test_segments_of_a_phase_are_told_apart() -> None:
    ledger = Ledger()
    with Watch(ledger, vocabulary=7), ledger.during("work", "first"):
        filled(4)
        ledger.mark("second", "last")
        filled(1)
    peaks = {segment: sum(parts.values()) for (_, segment), parts in ledger.peaks().items()}
    assert peaks == {"first": 4 * KIB, "second": KIB, "last": KIB}


def test_a_mode_that_watches_leaves_torch_as_it_was() -> None:
    before = torch.UntypedStorage.resize_
    with Watch(Ledger(), vocabulary=7) as watch:
        assert isinstance(watch, TorchDispatchMode)
    assert torch.UntypedStorage.resize_ is before
