"""Where pictures lie among each other: a method's own features of each, laid out on a plane by t-SNE. Needs torch.

t-SNE keeps neighbours, not distances (van der Maaten and Hinton 2008): groups mean something, gaps and sizes do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flawmap.errors import MissingExtra, UsageError
from flawmap.run.model import Model
from flawmap.run.progress import progress
from flawmap.types import Sample

LEAST = 5  # pictures


def embedding(model: Model, samples: Sequence[Sample]) -> np.ndarray:
    """(N, 2): a point a picture, by the mean and the deviation of each channel of its features over the places.

    UsageError: too few pictures, or a method without features of its own to show. MissingExtra without scikit-learn.
    """
    if len(samples) < LEAST:
        raise UsageError(f"t-SNE of {len(samples)} pictures says nothing: give at least {LEAST}, or leave it out")
    import torch

    from flawmap.run.engine import TorchEngine

    detector = TorchEngine.from_bundle(model.bundle.config, model.bundle.files["weights.safetensors"]).detector
    name = next((name for name in ("backbone", "teacher", "encode") if hasattr(detector, name)), None)
    if name is None:
        raise UsageError(f"{model.method} keeps no features of a picture that could be laid out: leave out t-SNE")
    found = []
    with progress("features for t-SNE", len(samples)) as tick, torch.inference_mode():
        for number, sample in enumerate(samples):
            image = torch.from_numpy(model.intake(sample.source)[0][None])
            feats = getattr(detector, name)(image)
            feats = feats[0] if name == "encode" else feats
            feats = [feats] if isinstance(feats, torch.Tensor) else list(feats)
            found.append(torch.cat([v for f in feats for v in (f.mean((0, 2, 3)), f.std((0, 2, 3)))]).numpy())
            tick(number + 1)
    vectors = np.stack(found)
    return tsne((vectors - vectors.mean(axis=0)) / np.maximum(vectors.std(axis=0), 1e-6))


def tsne(vectors: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, 2), the same each time."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtra("scikit-learn", "research", "t-SNE") from error
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
