"""How much arithmetic a token costs, and how much a device can do: model FLOPs utilisation."""

from transformers import PretrainedConfig

# Dense bf16 tensor-core peak, FLOP/s, from the vendor's data sheets; matched against the device's name, in this order.
PEAK_BF16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "T4": 65e12,
}


def peak_flops(device_name: str) -> float | None:
    """Peak bf16 FLOP/s of a GPU by its name; None when it is not in the table."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_name), None)


def flops_per_token(config: PretrainedConfig, parameters: int, trainable: int, seq_len: int) -> float:
    """FLOPs of forward and backward for one token (recomputation not counted).

    Full: 6 P + 6 L d s. With a frozen base the weight gradients fall away: 4 P + 6 P_trainable + 6 L d s, where P
    counts matrix parameters (all but the input embedding, whose look-up is free), L layers, d hidden size, s the
    sequence length (causal: half of 12 L d s). After Narayanan et al. 2021 (arXiv:2104.04473) and
    Chowdhery et al. 2022, appendix B (arXiv:2204.02311).
    """
    text = config.get_text_config()
    embedding = 0 if text.tie_word_embeddings else text.vocab_size * text.hidden_size
    matrix = parameters - embedding
    attention = 6 * text.num_hidden_layers * text.hidden_size * seq_len
    if trainable >= parameters:
        return float(6 * matrix + attention)
    return float(4 * (matrix - trainable) + 6 * trainable + attention)


def recomputed_flops_per_token(
    config: PretrainedConfig, parameters: int, seq_len: int, share: float = 1.0, all_trained: bool = False
) -> float:
    """FLOPs that activation checkpointing adds for one token: the forward pass of the `share` of the layers that are
    recomputed, once more: 2 P + 2 L d s, where P counts the layers' matrices. Where all weights are trained without
    adapters, not the last of each layer (`down_proj`): nothing needs its product, so torch stops before it. They count
    as work of the hardware (HFU), not of the model (MFU): Korthikanti et al. 2022, arXiv:2205.05198, section 6.
    """
    text = config.get_text_config()
    outside = text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings else 2)
    last = text.num_hidden_layers * text.hidden_size * getattr(text, "intermediate_size", 0) if all_trained else 0
    attention = 2 * text.num_hidden_layers * text.hidden_size * seq_len
    return share * float(2 * (parameters - outside - last) + attention)
