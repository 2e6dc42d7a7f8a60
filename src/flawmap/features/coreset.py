"""A bounded, seeded sample of patches, and the greedy k-centre coreset of it.

N patches  M of them kept  D their length  E = D + 1  L candidates looked at together
"""

from __future__ import annotations

import torch
from torch import Tensor

from flawmap.errors import DataError

BLOCKS = (8192, 512)  # rows that are looked at together, and those of them that are searched by the plain loop
SPAN = 512  # rows whose last measuring lies within so many centres are measured together
WIDE = 512  # centres in one matrix product


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
        # Two rows of one block can draw the same slot; the later one must win, which index assignment does not promise.
        row_B = slot_B.argsort(stable=True)
        slot_B = slot_B[row_B]
        wins_B = (slot_B < self.most) & (slot_B != torch.cat([slot_B[1:], slot_B.new_tensor([-1])]))
        self.rows_ND[slot_B[wins_B]] = block_BD[row_B[wins_B]]
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
    """Squared distances are one matrix product, (x, 1) times (-2 c, |c|^2), and |x|^2 is added to the least of a row.

    It holds a copy of the rows and of the centres, one number a row longer, and products of at most
    max(N, BLOCKS[0]) x WIDE in passing (the first of all N rows is with one centre alone).
    """

    def __init__(self, patch_ND: Tensor, keep: int) -> None:
        N, D = patch_ND.shape
        self.patch_NE = torch.cat([patch_ND, patch_ND.new_ones(N, 1)], dim=1)
        self.norm_N = patch_ND.square().sum(dim=1)
        if not torch.isfinite(self.norm_N).all():
            raise DataError("a feature of a good picture is not a finite number: check the backbone's weights")
        # Closer than float rounding of expanded norms can tell: a copy of a row that is kept already.
        self.copy = 16 * torch.finfo(patch_ND.dtype).eps * float(self.norm_N.max())
        self.keep, self.chosen = keep, list[int]()
        self.centre_ME = patch_ND.new_empty(keep, D + 1)
        self.bound_N = torch.full_like(self.norm_N, torch.inf)  # squared distance to the centres measured so far
        self.measured_N = torch.zeros_like(self.norm_N, dtype=torch.long)  # how many centres those are

    def run(self, first: int) -> Tensor:
        self._keep(first)
        self._take(torch.arange(len(self.norm_N), device=self.norm_N.device), -torch.inf, BLOCKS)
        return torch.tensor(self.chosen, device=self.norm_N.device)

    def _take(self, row_L: Tensor, rest: float, blocks: tuple[int, ...]) -> None:
        """Takes centres among these rows for as long as the farthest of all rows must be one of them.

        rest    no other row is farther than that
        blocks  how many of the rows to look at together, and how many of those again
        """
        self._measure(row_L)
        if not blocks:
            return self._choose(row_L, rest)
        while len(self.chosen) < self.keep:
            bound_L = self.bound_N[row_L]
            far = float(bound_L.max())
            if far < rest or far <= self.copy:
                return None
            # All rows that are as far as the last one of the block are in it too, so that the first of equals is found.
            cut = float(bound_L.topk(min(blocks[0], len(row_L)), sorted=False).values.min())
            self._take(row_L[(bound_L >= cut) & (bound_L > self.copy)], max(rest, cut), blocks[1:])
        return None

    def _choose(self, row_L: Tensor, rest: float) -> None:
        """The plain loop over a few rows."""
        patch_LE, norm_L, bound_L = self.patch_NE[row_L], self.norm_N[row_L], self.bound_N[row_L]
        while len(self.chosen) < self.keep:
            far = int(bound_L.argmax())
            if (gap := float(bound_L[far])) < rest or gap <= self.copy:
                break
            centre_E = self._keep(int(row_L[far]))
            torch.minimum(bound_L, (patch_LE @ centre_E).add_(norm_L).clamp_(min=0), out=bound_L)
            bound_L[far] = 0.0
        self.bound_N[row_L] = bound_L
        self.measured_N[row_L] = len(self.chosen)

    def _keep(self, row: int) -> Tensor:
        centre_E = self.centre_ME[len(self.chosen)]
        centre_E[:-1], centre_E[-1] = -2 * self.patch_NE[row, :-1], self.norm_N[row]
        self.chosen.append(row)
        self.bound_N[row] = 0.0
        return centre_E

    def _measure(self, row_L: Tensor) -> None:
        """Brings the bounds of these rows up to all centres chosen so far."""
        total = len(self.chosen)
        age_L = self.measured_N[row_L] // SPAN
        # Rows that were measured at about the same time go together.
        for age in torch.unique(age_L).tolist():
            group_L = row_L[age_L == age]
            patch_LE, norm_L, bound_L = self.patch_NE[group_L], self.norm_N[group_L], self.bound_N[group_L]
            for low in range(age * SPAN, total, WIDE):
                gap_LM = patch_LE @ self.centre_ME[low : min(low + WIDE, total)].T
                torch.minimum(bound_L, gap_LM.amin(dim=1).add_(norm_L).clamp_(min=0), out=bound_L)
            self.bound_N[group_L] = bound_L
        self.measured_N[row_L] = total
