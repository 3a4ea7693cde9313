"""What goes to another process by file arrives as it was, and writing there changes nothing here."""

from __future__ import annotations

import pickle

import torch

from fusion.shared_tensors import LARGE_BYTES, pickled


def test_large_tensors_are_mapped_from_files_and_all_arrive_as_they_were(tmp_path):
    large = torch.arange(LARGE_BYTES // 2, dtype=torch.float16).view(-1, 8)
    half = torch.ones(LARGE_BYTES, dtype=torch.bfloat16)
    value = {"large": large, "small": torch.tensor([1.5, float("nan")]), "half": half, "again": large}
    data = pickled(value, tmp_path)
    assert len(data) < LARGE_BYTES + half.nbytes and len(list(tmp_path.iterdir())) == 1
    arrived = pickle.loads(data)
    assert all(torch.equal(arrived[name].nan_to_num(), value[name].nan_to_num()) for name in value)
    assert arrived["again"] is arrived["large"]
    arrived["large"][:] = 0
    assert torch.equal(pickle.loads(data)["large"], large)
