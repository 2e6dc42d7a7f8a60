"""A bounded, seeded sample of patches, and the greedy k-centre coreset of it.

N patches  M of them kept  D their length  L candidates looked at together
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from flawmap.errors import DataError


class Reservoir:
    """A uniform random sample of at most `most` rows of a stream of any length (algorithm R, a block at a time)."""

    def __init__(self, most: int, seed: int) -> None:
        self.most, self.seen = most, 0
        self.rows_ND: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, block_BD: Tensor) -> None:
        if self.rows_ND is None:
            self.rows_ND = block_BD.new_empty((self.most, block_BD.shape[1]))
        place_B = torch.arange(self.seen, self.seen + len(block_BD))
        drawn_B = (torch.rand(len(block_BD), generator=self._generator, dtype=torch.float64) * (place_B + 1)).long()
        slot_B = torch.where(place_B < self.most, place_B, drawn_B)
        row_B = (slot_B < self.most).nonzero()[:, 0]
        # Two rows of one block can draw the same slot; the later one must win, which index assignment does not promise.
        winner = dict(zip(slot_B[row_B].tolist(), row_B.tolist(), strict=True))
        slot, row = torch.tensor(list(winner.keys())), torch.tensor(list(winner.values()))
        if len(winner):
            self.rows_ND[slot] = block_BD[row]
        self.seen += len(block_BD)

    def rows(self) -> Tensor:
        """(min(seen, most), D)"""
        if self.rows_ND is None:
            raise AssertionError("nothing was added")
        return self.rows_ND[: min(self.seen, self.most)]


def k_centre(patch_ND: Tensor, keep: int, *, seed: int, projection: int = 0) -> Tensor:
    """The indices of `keep` rows such that every row has a kept one near: (keep,), in the order of their choice.

    Greedy farthest-first traversal (PatchCore algorithm 1), exact: the same rows as the plain loop that measures all
    rows against each new centre. The distance of a row to its nearest centre only falls, so the last one measured is an
    upper bound; rows are measured again only when their bound makes them candidates for the next centre. Fewer than
    `keep` come back where all further rows are copies of kept ones.

    projection  search among random projections to so many dimensions (Johnson-Lindenstrauss); 0: none
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    N, D = patch_ND.shape
    first = int(torch.randint(N, (1,), generator=generator))
    if projection and projection < D:
        patch_ND = patch_ND @ torch.randn(D, projection, generator=generator).to(patch_ND) / projection**0.5
        patch_ND -= patch_ND.mean(dim=0)  # its own copy: nothing is gained by another one
    else:
        patch_ND = patch_ND - patch_ND.mean(dim=0)
    # Centred, since squared distances come from expanded norms, which lose small ones far from the origin.
    return _Search(patch_ND, min(keep, N)).run(first)


class _Search:
    def __init__(self, patch_ND: Tensor, keep: int) -> None:
        self.patch_ND, self.norm_N = patch_ND, patch_ND.square().sum(dim=1)
        if not torch.isfinite(self.norm_N).all():
            raise DataError("a feature of a good picture is not a finite number: check the backbone's weights")
        # Closer than float rounding of expanded norms can tell: a copy of a row that is kept already.
        self.copy = 16 * torch.finfo(patch_ND.dtype).eps * float(self.norm_N.max())
        self.keep, self.chosen = keep, patch_ND.new_empty(0, dtype=torch.long)
        self.bound_N = torch.full_like(self.norm_N, torch.inf)  # squared distance to the centres measured so far
        self.measured_N = torch.zeros(
            len(patch_ND), dtype=torch.long, device=patch_ND.device
        )  # how many centres those are

    def run(self, first: int) -> Tensor:
        self.chosen = torch.tensor([first], device=self.patch_ND.device)
        self._measure(torch.arange(len(self.patch_ND), device=self.patch_ND.device))
        while len(self.chosen) < self.keep and float(self.bound_N.max()) > self.copy:
            look = min(4096, len(self.bound_N))
            _, row_L = torch.topk(self.bound_N, look, sorted=False)
            self._measure(row_L)
            self._choose(row_L)
        return self.chosen

    def _choose(self, row_L: Tensor) -> None:
        """Takes centres among the candidates for as long as the farthest of all rows must be one of them."""
        outside_N = self.bound_N.clone()
        outside_N[row_L] = -1.0
        rest = float(outside_N.max())
        patch_LD, norm_L, bound_L = self.patch_ND[row_L], self.norm_N[row_L], self.bound_N[row_L]
        fresh: list[int] = []
        while len(self.chosen) + len(fresh) < self.keep:
            far = int(bound_L.argmax())
            if float(bound_L[far]) <= self.copy or float(bound_L[far]) < rest:
                break
            fresh.append(int(row_L[far]))
            gap_L = norm_L + norm_L[far] - 2 * (patch_LD @ patch_LD[far])
            gap_L[far] = 0.0
            torch.minimum(bound_L, gap_L.clamp_(min=0), out=bound_L)
        self.chosen = torch.cat([self.chosen, torch.tensor(fresh, dtype=torch.long, device=row_L.device)])
        self.bound_N[row_L] = bound_L
        self.measured_N[row_L] = len(self.chosen)

    def _measure(self, row_L: Tensor) -> None:
        """Brings the bounds of these rows up to all centres chosen so far."""
        total = len(self.chosen)
        stale_L = self.measured_N[row_L]
        centre_MD, centre_M = self.patch_ND[self.chosen], self.norm_N[self.chosen]
        # Rows that were measured at about the same time go together: one matrix product a group.
        for low, high in _spans(stale_L, total):
            group_L = row_L[(stale_L >= low) & (stale_L < high)]
            gap_LM = self.norm_N[group_L][:, None] + centre_M[low:] - 2 * (self.patch_ND[group_L] @ centre_MD[low:].T)
            nearest_L = gap_LM.clamp_(min=0).min(dim=1).values if gap_LM.shape[1] else self.bound_N[group_L]
            self.bound_N[group_L] = torch.minimum(self.bound_N[group_L], nearest_L)
        self.bound_N[self.chosen] = 0.0
        self.measured_N[row_L] = total


def _spans(stale_L: Tensor, total: int) -> Iterable[tuple[int, int]]:
    """Ranges of "centres measured so far" that hold some of the rows, about 256 centres wide."""
    for low in sorted({int(n) // 256 * 256 for n in torch.unique(stale_L).tolist()}):
        if low < total:
            yield low, min(low + 256, total)
