"""What several shards found, merged: the order of one machine, ties included."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from uptake.store.cluster.index import merge


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 5),
    st.integers(0, 10_000),
)  # fmt: skip
def test_the_best_of_all_shards_come_by_score_and_then_by_id(
    found: list[int], k: int, queries: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(100)[: sum(found)] for _ in range(queries)])
    # Few different scores: most are equal to another.
    scores = random.integers(0, 4, ids.shape).astype(np.float32)
    ends = np.cumsum(found)[:-1]
    ranked = merge(np.split(ids, ends, axis=1), np.split(scores, ends, axis=1), k, 0.5)
    for row, one in enumerate(ranked):
        best = sorted(zip(-scores[row], ids[row], strict=True))[:k]
        assert one.ids.tolist() == [key for _, key in best]
        assert one.scores.tolist() == [-score for score, _ in best]
        assert one.coverage == 0.5
