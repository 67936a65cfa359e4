"""Starting values by kind of task, as data. A user's own keys win, and `dft check` shows both.

The values are those of a published fine-tuning course: the rank grows with how much the model has to learn. Style
needs rank 4 to 8, domain knowledge 16 to 64, code 64 to 128; alpha is twice the rank.
"""

from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Tone and format only, the knowledge is there already. The course: rank 4 to 8.
    "style": {"method": {"rank": 8, "alpha": 16}, "optim": {"lr": 1e-4, "epochs": 2}},
    # Short answers of a fixed kind: little to learn, so fewer weights at a higher rate.
    "support": {"method": {"rank": 8, "alpha": 16}, "optim": {"lr": 2e-4, "epochs": 2}},
    # The language and facts of a field. The course: rank 16 to 64.
    "domain": {"method": {"rank": 32, "alpha": 64}, "optim": {"lr": 1e-4, "epochs": 2}},
    # A programming language or an in-house library.
    "code": {"method": {"rank": 64, "alpha": 128}, "optim": {"lr": 1e-4, "epochs": 3}},
}


def preset_values(tree: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of the preset that `tree` (a run.yaml as written) names; {} without one.

    A method other than LoRA has no rank: it gets none of the method's values. An unknown preset is no error here; the
    schema names it.
    """
    name = tree.get("preset")
    preset = PRESETS.get(name, {}) if isinstance(name, str) else {}
    method = tree.get("method", {})
    is_lora = isinstance(method, dict) and method.get("type", "lora") in ("lora", "qlora")
    return {
        f"{section}.{key}": value
        for section, values in preset.items()
        if section != "method" or is_lora
        for key, value in values.items()
    }


def with_preset(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of `tree` in which the preset's values fill what the user left out."""
    merged = dict(tree)
    for dotted, value in preset_values(tree).items():
        section, key = dotted.split(".")
        written = merged.get(section, {})
        if isinstance(written, dict) and key not in written:
            merged[section] = {**written, key: value}
    return merged
