"""Ranks against a float64 list sorted query by query."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from vitrail.errors import VitrailError
from vitrail.metrics import retrieval as module
from vitrail.metrics.retrieval import retrieval, retrieval_ranks, summarize_ranks


def oracle(queries, items, own):
    """Ranks by going through each query's sorted list; `own`: query -> its items."""
    queries, items = queries.numpy().astype(np.float64), items.numpy().astype(np.float64)
    ranks = []
    for query, mine in sorted(own.items()):
        similarity = items @ queries[query]
        order = sorted(range(len(items)), key=lambda item: -similarity[item])
        others = 0
        for item in order:
            if item in mine:
                break
            others += 1
        ranks.append(others + 1)
    return ranks


def vectors(seed):
    generator = torch.Generator().manual_seed(seed)
    clips = normalize(torch.randn(23, 6, generator=generator), dim=1)
    captions = clips.repeat_interleave(5, dim=0) + 0.6 * torch.randn(115, 6, generator=generator)
    return clips, normalize(captions, dim=1)


@pytest.mark.parametrize("cells", [1, 24, 100, 2**24])
def test_five_captions_a_clip_in_both_directions(monkeypatch, cells):
    monkeypatch.setattr(module, "_CELLS", cells)
    clips, captions = vectors(0)
    pairs = torch.stack([torch.arange(115), torch.arange(115) // 5], dim=1)
    pairs = pairs[torch.randperm(115, generator=torch.Generator().manual_seed(1))]
    to_clip = {caption: {caption // 5} for caption in range(115)}
    to_caption = {clip: set(range(5 * clip, 5 * clip + 5)) for clip in range(23)}
    there, back = oracle(captions, clips, to_clip), oracle(clips, captions, to_caption)
    assert max(there) > 10 and max(back) > 1  # the case is neither solved nor hopeless
    assert retrieval_ranks(captions, clips, pairs).tolist() == there
    assert retrieval_ranks(clips, captions, pairs.flip(1)).tolist() == back
    found = retrieval(captions, clips, pairs, ("text", "audio"))
    assert found == {
        "text_to_audio_r1": np.mean(np.array(there) <= 1),
        "text_to_audio_r5": np.mean(np.array(there) <= 5),
        "text_to_audio_r10": np.mean(np.array(there) <= 10),
        "text_to_audio_median_rank": np.median(there),
        "audio_to_text_r1": np.mean(np.array(back) <= 1),
        "audio_to_text_r5": np.mean(np.array(back) <= 5),
        "audio_to_text_r10": np.mean(np.array(back) <= 10),
        "audio_to_text_median_rank": np.median(back),
    }


def test_one_to_one_without_pairs():
    clips, captions = vectors(2)
    captions = captions[::5]
    expected = oracle(clips, captions, {number: {number} for number in range(23)})
    assert retrieval_ranks(clips, captions).tolist() == expected


def test_what_has_no_partner_only_stands_in_the_way():
    queries = torch.eye(3)
    items = normalize(torch.tensor([[1.0, 0.9, 0], [1, 0, 0], [0, 0, 1]]), dim=1)
    pairs = torch.tensor([[0, 0], [2, 2]])
    assert retrieval_ranks(queries, items, pairs).tolist() == [2, 1]


def test_ties_count_against_the_query():
    same = torch.ones(4, 1)
    assert retrieval_ranks(same, same).tolist() == [4, 4, 4, 4]
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    assert retrieval_ranks(same, same, every).tolist() == [1, 1, 1, 1]  # but not those of its own
    assert retrieval_ranks(same, same, every[:-1]).tolist() == [1, 1, 1, 2]


def test_summary():
    expected = {"r1": 0.25, "r5": 0.5, "r10": 0.75, "median_rank": 6.0}
    assert summarize_ranks(torch.tensor([1, 4, 8, 11])) == expected


@pytest.mark.parametrize(
    ("queries", "items", "pairs", "sentence"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), None, r"shapes \[2, 3\] and \[2, 4\] cannot be compared"),
        (torch.ones(2, 3), torch.ones(4, 3), None, "2 and 4 vectors do not pair off"),
        (torch.ones(2, 3), torch.ones(4, 3), [[0, 4]], "pairs of vectors that do not exist, among 2 and 4"),
        (torch.ones(2, 3), torch.ones(4, 3), [[2, 0]], "pairs of vectors that do not exist"),
        (torch.ones(2, 3), torch.ones(4, 3), [[-1, 0]], "pairs of vectors that do not exist"),
        (torch.ones(2, 3), torch.ones(4, 3), [[0, 1, 2]], r"Pairs of shape \[1, 3\] are none"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), None, "not finite"),
    ],
)
def test_errors(queries, items, pairs, sentence):
    with pytest.raises(VitrailError, match=sentence):
        retrieval(queries, items, None if pairs is None else torch.tensor(pairs))
