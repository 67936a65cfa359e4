"""Near-duplicates against brute-force Jaccard, and what must hold: no chance, linear cost, the lowest row as label."""

import random
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest

from distributed_ft.data.similar import bands_for, clusters, shared, shingles, signatures, unite

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "re", "so") for b in ("ba", "de", "fi", "go", "hu", "ja", "ke")]


def sentence(r, length=60):
    return [r.choice(WORDS) + str(r.randrange(40)) for _ in range(length)]


def variant(r, base, changes):
    copy = list(base)
    for _ in range(changes):
        copy[r.randrange(len(copy))] = r.choice(WORDS)
    return copy


@cache
def triples(text):
    return frozenset(shingles(text))


def jaccard(a, b):
    a, b = triples(a), triples(b)
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def corpus():
    r = random.Random(0)
    texts = []
    for _ in range(150):
        base = sentence(r)
        texts += [" ".join(variant(r, base, r.randrange(4))) for _ in range(r.randrange(1, 5))]
    r.shuffle(texts)
    return texts


def test_signatures_estimate_jaccard_within_four_standard_errors(corpus):
    found = signatures(corpus)
    assert found.shape == (len(corpus), 128)
    assert found.dtype == np.uint32
    errors = []
    for i in range(0, len(corpus), 3):
        for j in range(len(corpus)):
            true = jaccard(corpus[i], corpus[j])
            if true > 0:
                errors.append(((found[i] == found[j]).mean() - true) / max((true * (1 - true) / 128) ** 0.5, 0.01))
    assert max(map(abs, errors)) < 5
    assert abs(np.mean(errors)) < 0.2


def test_clusters_are_those_of_brute_force_up_to_the_error_of_the_estimate(corpus):
    labels, sure = clusters(signatures(corpus), 0.8), {}
    for threshold in (0.9, 0.7):
        pairs = [(i, j) for i in range(len(corpus)) for j in range(i) if jaccard(corpus[i], corpus[j]) >= threshold]
        assert len(pairs) > 20
        sure[threshold] = unite(len(corpus), [tuple(np.array(pairs).T)])
    together, allowed = sure[0.9], sure[0.7]
    for i in range(len(corpus)):
        assert labels[i] == labels[together[i]], "clearly alike, and apart"
        assert allowed[i] == allowed[labels[i]], "clearly unlike, and together"
        assert labels[i] <= i
        assert labels[labels[i]] == labels[i]


def test_a_chain_is_one_cluster_and_its_label_the_lowest_row():
    r = random.Random(1)
    chain = [sentence(r, 200)]
    for step in range(1, 12):
        following = list(chain[-1])
        following[step * 9 : step * 9 + 3] = sentence(r, 3)
        chain.append(following)
    texts = [" ".join(sentence(r)), *(" ".join(words) for words in reversed(chain))]
    assert jaccard(texts[1], texts[-1]) < 0.7
    assert clusters(signatures(texts), 0.8).tolist() == [0] + [1] * 12


def test_equal_texts_are_together_and_texts_without_words_are_not():
    texts = [
        "yes",
        "No!",
        "",
        "yes.",
        "???",
        "no",
        "!!!",
        "",
        "一只猫坐在垫子上",
        "一只猫坐在垫子上。",
        "一只狗坐在椅子上",
    ]
    assert clusters(signatures(texts), 0.8).tolist() == [0, 1, 2, 0, 4, 1, 6, 2, 8, 8, 10]
    assert clusters(signatures([]), 0.8).tolist() == []


def test_what_most_texts_share_is_no_similarity():
    r = random.Random(2)
    template = " ".join(sentence(r, 100))
    texts = [f"{template} {' '.join(sentence(r, 12))}" for _ in range(300)]
    texts.append(texts[7] + " please")
    assert len(set(clusters(signatures(texts), 0.8))) < 100
    apart = clusters(signatures(texts, shared(texts)), 0.8)
    assert len(set(apart)) == 300
    assert apart[300] == 7
    assert shared(texts[:5]) == frozenset()


def test_the_same_on_every_call_and_whatever_is_added_behind(corpus):
    first, again = clusters(signatures(corpus), 0.8), clusters(signatures(list(corpus)), 0.8)
    assert np.array_equal(first, again)
    part = clusters(signatures(corpus[:200]), 0.8)
    for label in set(part.tolist()):
        assert len(set(first[:200][part == label].tolist())) == 1, "more rows only ever join clusters"


def test_a_bucket_of_thousands_stays_linear():
    r = random.Random(3)
    base = sentence(r, 40)

    def seconds(n):  # rows that all share a third of their words, beside as many that are equal
        texts = [" ".join([*base[:20], *sentence(r, 40)]) for _ in range(n // 2)] + [" ".join(base)] * (n // 2)
        found = signatures(texts)
        begin = time.process_time()
        labels = clusters(found, 0.8)
        assert len(set(labels.tolist())) == n // 2 + 1
        return time.process_time() - begin

    seconds(500)
    assert seconds(16000) < 8 * (seconds(4000) + 0.02)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_meet_at_the_threshold(threshold):
    bands, rows = bands_for(threshold)
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert 1 - (1 - (threshold / 2) ** rows) ** bands < 0.6, "too many candidates"


def test_united_components_are_those_of_a_walk():
    r = random.Random(4)
    for _ in range(20):
        size = r.randrange(1, 40)
        pairs = [(r.randrange(size), r.randrange(size)) for _ in range(r.randrange(size))]
        expected = list(range(size))
        for _ in range(size):
            for a, b in pairs:
                expected[a] = expected[b] = min(expected[a], expected[b])
        left, right = np.array(pairs, np.int64).reshape(-1, 2).T
        assert unite(size, [(left, right)]).tolist() == expected


def test_signatures_start_no_thread_that_a_forked_process_would_wait_for():
    code = (
        "import os, signal\n"
        "from distributed_ft.data.similar import signatures\n"
        "texts = [f'the {i} words of a text that are compared {i * 7}' for i in range(400)]\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "signatures(texts)\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(10)\n"
        "    signatures(texts)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
