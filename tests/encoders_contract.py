"""The contract of an encoder: subclass `EncoderContract`, provide `encoder` and `raws`, and get every test."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from featurize.encoders import build_encoder
from featurize.encoders.base import Encoder, EncoderRecord
from stores.record import check_complete, fingerprint

TOLERANCE = 1e-3  # largest relative deviation allowed between batches, in fp32


class EncoderContract:
    """`encoder`: ready to encode. `raws`: at least 6 different inputs. `nothing`: an input with nothing to encode."""

    @pytest.fixture
    def encoder(self) -> Encoder:
        raise NotImplementedError

    @pytest.fixture
    def raws(self) -> list:
        raise NotImplementedError

    @pytest.fixture
    def pretrained(self) -> dict[str, str]:
        """`{"pretrained_model": …}` of an encoder that was trained elsewhere."""
        return {}

    def encode(self, encoder: Encoder, raws: list) -> np.ndarray:
        with torch.inference_mode():
            pooled = encoder.eval()(encoder.collate([encoder.prepare(raw) for raw in raws])).pooled
        return pooled.numpy()

    def test_one_finite_vector_for_each_segment(self, encoder, raws):
        vectors = self.encode(encoder, raws)
        assert vectors.shape == (len(raws), encoder.width) and vectors.dtype == np.float32
        assert np.isfinite(vectors).all() and np.abs(vectors).max() < 60_000  # fits float16

    def test_different_segments_have_different_vectors(self, encoder, raws):
        vectors = self.encode(encoder, raws)
        assert len(np.unique(vectors, axis=0)) == len(raws)

    def test_a_vector_depends_on_its_segment_alone(self, encoder, raws):
        together = self.encode(encoder, raws)
        alone = np.concatenate([self.encode(encoder, [raw]) for raw in raws])
        backwards = self.encode(encoder, raws[::-1])[::-1]
        scale = np.abs(together).max(axis=1, keepdims=True)
        deviation = max(np.abs((other - together) / scale).max() for other in (alone, backwards))
        print(f"{encoder.name}: largest relative deviation {deviation:.2e}")
        assert deviation <= TOLERANCE

    def test_preparing_twice_gives_the_same_item(self, encoder, raws):
        for raw in raws:
            assert pickle.dumps(encoder.prepare(raw)) == pickle.dumps(encoder.prepare(raw))

    @pytest.mark.parametrize("weights", [True, False])
    def test_items_and_encoder_travel_to_other_processes(self, encoder, raws, weights):
        copy = pickle.loads(pickle.dumps(encoder if weights else encoder.without_weights()))
        items = [pickle.loads(pickle.dumps(copy.prepare(raw))) for raw in raws]
        with torch.inference_mode():
            np.testing.assert_array_equal(encoder(encoder.collate(items)).pooled.numpy(), self.encode(encoder, raws))

    def test_gradients_flow_only_where_they_should(self, encoder, raws):
        weights = list(encoder.parameters())
        encoder.requires_grad_(False)
        batch = encoder.collate([encoder.prepare(raw) for raw in raws])
        assert not encoder(batch).pooled.requires_grad
        if weights:
            encoder.requires_grad_(True)
            encoder(batch).pooled.sum().backward()
            assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in weights)

    def test_the_record_is_complete_and_tells_configurations_apart(self, encoder):
        record = encoder.record
        assert isinstance(record, EncoderRecord)
        check_complete(record.to_dict())
        assert record.width == encoder.width and record.libraries and "unknown" not in record.libraries.values()
        assert record.parameters, "an encoder without parameters cannot be told from its next version"
        assert fingerprint(record.to_dict()) == fingerprint(pickle.loads(pickle.dumps(encoder)).record.to_dict())

    def test_its_record_says_how_to_build_it_again(self, encoder, pretrained):
        record = json.loads(json.dumps(encoder.record.to_dict()))  # as a store keeps it
        again = build_encoder(encoder.name, {**encoder.options_of(record["parameters"]), **pretrained})
        learned = ("weights", "trained_on", "width")  # what fitting and training add
        told, expected = ({k: v for k, v in r.items() if k not in learned} for r in (again.record.to_dict(), record))
        assert told == expected

    def test_weights_survive_saving(self, encoder, raws, new_encoder):
        state = encoder.state_arrays()
        copy = new_encoder()
        if state:
            copy.load_state_arrays(state)
        copy.trained_on = encoder.trained_on
        np.testing.assert_array_equal(self.encode(copy, raws), self.encode(encoder, raws))
        assert fingerprint(copy.record.to_dict()) == fingerprint(encoder.record.to_dict())
