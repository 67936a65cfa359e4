"""Whether there are enough examples for what is to be learned."""

from distributed_ft.data.findings import Finding

# A style or format is learned from 100 good examples, a behaviour from 500, a domain's words and facts from 1,000
# (Zhou et al. 2023, arXiv:2305.11206: 1,000 curated ones align a model), a task that is new to it from 5,000.
NEEDED = {"style": 100, "behaviour": 500, "domain": 1000, "new_task": 5000}


def judge(rows: int, kind: str | None) -> list[Finding]:
    """`rows`: of all training files; `kind`: data.audit.kind."""
    if kind is None or rows >= NEEDED[kind]:
        return []
    return [
        Finding(
            id="size",
            severity="warning",
            count=rows,
            rows=(),
            message=f"{rows:,} training rows for data.audit.kind: {kind}, which needs about {NEEDED[kind]:,}; expect "
            "it to be learned in part, and scores to scatter; add examples, or compare with a few-shot prompt",
        )
    ]
