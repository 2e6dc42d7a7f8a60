"""EfficientAD: a student imitates a frozen teacher, and an auto-encoder, on good pictures; where it cannot is strange.

Batzner et al., EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies, WACV 2024,
https://arxiv.org/abs/2303.14535

Departs from the paper: the teacher's backbone is what `flawmap distill` was given, EfficientNet-Lite0 for the embedded
one, and the networks are as wide as asked; a batch may have more than one picture, each with its own hard features;
the penalty's pictures are drawn textures where no folder is named. The preset `small` is a quarter as wide, with fewer
steps and a higher rate (docs/defaults.md).

B images  D features  h w their grid, a feature every 4 pixels  H W pixels
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from flawmap.detectors.base import Detector, Optimisers, option
from flawmap.errors import DataError, UsageError
from flawmap.features.patches import Enlarge
from flawmap.types import Batch, Prediction

HARD = 0.999  # of all differences, so many are too small to learn from (p_hard, section 3.2)
LOW, HIGH = 0.9, 0.995  # quantiles of a good picture's map that become 0 and 0.1 (section 3.4)
EMBEDDED_DIM = 152  # features of the embedded backbone's stages 2 and 3
SAMPLED = 2**22  # of the held-out maps' values, for the quantiles
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class EfficientAD(Detector):
    name = "efficientad"
    title = "EfficientAD"
    paper = "https://arxiv.org/abs/2303.14535"
    needs_end = True
    mixed_precision = True
    wants_generic = True
    presets = {  # noqa: RUF012 (read only)
        "small": {"width": 32, "dim": 96, "ae_width": 16, "steps": 2000, "rate": 1e-3, "batch": 2},
        "medium": {"pdn": "medium", "width": 256},
    }

    @dataclass(frozen=True)
    class Config(Detector.Config):
        teacher: str = option("", "a .safetensors file made by flawmap distill; empty: the embedded one of that shape")
        pdn: str = option("small", "shape of teacher and student: small or medium (EfficientAD-S or -M)")
        width: int = option(128, "channels of their first layer; 256 in the paper's medium", least=1)
        dim: int = option(384, "features of the teacher", least=1)
        ae_width: int = option(32, "channels of the auto-encoder's first layer; later ones have twice as many", least=1)
        steps: int = option(70_000, "steps of training", least=1)
        batch: int = option(1, "good pictures a step, and as many generic ones", least=1, most=256)
        rate: float = option(1e-4, "learning rate of Adam; x 0.1 at 95 % of the steps", above=0)
        generic: str = option("", "a folder of photos of anything, for the penalty; empty: drawn textures")
        seed: int = option(0, "of the first weights", least=0, most=2**63 - 1)

    config: Config
    mean_D11: Tensor
    std_D11: Tensor
    low_M: Tensor
    high_M: Tensor

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__(config, pretrained=pretrained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.teacher = PDN(config.pdn, config.width, config.dim).requires_grad_(False)
            self.student = PDN(config.pdn, config.width, 2 * config.dim)
            self.grid = self.student.grid(config.size)
            self.autoencoder = AutoEncoder(config.ae_width, config.dim, config.size, self.grid)
        self.border = (config.size // 4 - self.grid) // 2  # features that lie too near the edge to be computed
        padded = self.grid + 2 * self.border
        self.enlarge = Enlarge((padded, padded), (config.size, config.size), sigma_px=0)
        self.register_buffer("mean_D11", torch.zeros(config.dim, 1, 1))
        self.register_buffer("std_D11", torch.ones(config.dim, 1, 1))
        self.register_buffer("low_M", torch.zeros(2))
        self.register_buffer("high_M", torch.ones(2))
        self.origin, self.sha256 = "random", ""
        if pretrained:
            self.origin, self.sha256 = load_teacher(self.teacher, config)

    @property
    def batch_size(self) -> int:
        return self.config.batch

    def given(self) -> dict[str, str]:
        return {"teacher_sha256": self.sha256, "teacher_origin": self.origin}

    @torch.no_grad()
    def begin(self, normals: Iterable[Batch]) -> None:
        """Mean and deviation of each of the teacher's features over the good pictures."""
        count, total_D, square_D = 0, 0.0, 0.0
        for batch in normals:
            feat_DN = self.teacher(normalised(batch.image)).double().transpose(0, 1).flatten(1)
            count += feat_DN.shape[1]
            total_D, square_D = total_D + feat_DN.sum(1), square_D + feat_DN.square().sum(1)
        assert isinstance(total_D, Tensor)
        mean_D = total_D / count
        deviation_D = (square_D / count - mean_D.square()).clamp(min=0).sqrt()
        self.mean_D11 = mean_D.float().view(-1, 1, 1)
        # A feature that never moves says nothing of good parts: leave its scale rather than blow it up.
        self.std_D11 = torch.where(deviation_D > 1e-6, deviation_D, 1.0).float().view(-1, 1, 1)

    def optimisers(self, steps: int) -> Optimisers:
        learning = [*self.student.parameters(), *self.autoencoder.parameters()]
        adam = optim.Adam(learning, lr=self.config.rate, weight_decay=1e-5)
        return [(adam, optim.lr_scheduler.MultiStepLR(adam, [int(0.95 * steps)], gamma=0.1))]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Hard features, penalty, auto-encoder and its student (section 3.2 and 3.3), all with weight 1."""
        dim, image = self.config.dim, normalised(batch.image)
        gap_BDhw = (self._taught(image) - self.student(image, slice(dim))).square()
        hard = hardest(gap_BDhw)
        penalty = self.student(normalised(batch.generic), slice(dim)).square().mean()
        changed = normalised(jittered(batch.image))
        coded = self.autoencoder(changed)
        rebuilt = F.mse_loss(coded, self._taught(changed))
        followed = F.mse_loss(self.student(changed, slice(dim, None)), coded)
        parts = {"hard": hard, "penalty": penalty, "rebuilt": rebuilt, "followed": followed}
        return hard + penalty + rebuilt + followed, {name: part.item() for name, part in parts.items()}

    @torch.no_grad()
    def end(self, held_out: Iterable[Batch]) -> None:
        """The quantiles of either map on good pictures that the student has not seen."""
        self.eval()
        found = [self._maps(batch.image) for batch in held_out]
        for number in range(2):
            values = torch.cat([maps[number].flatten() for maps in found])
            values = values[:: math.ceil(len(values) / SAMPLED)]
            low, high = torch.quantile(values, torch.tensor([LOW, HIGH], device=values.device))
            self.low_M[number], self.high_M[number] = low, torch.maximum(high, low + 1e-6)

    def forward(self, image: Tensor) -> Prediction:
        scaled = [
            0.1 * (map_Bhw - self.low_M[number]) / (self.high_M[number] - self.low_M[number])
            for number, map_Bhw in enumerate(self._maps(image))
        ]
        map_Bhw = 0.5 * scaled[0] + 0.5 * scaled[1]
        map_BHW = self.enlarge(F.pad(map_Bhw, (self.border,) * 4))
        # The border's zeros say nothing: of two good pictures below them, one may still be the stranger.
        edge, side = 4 * self.border + 2, self.config.size
        return Prediction(map_BHW, map_BHW[:, edge : side - edge, edge : side - edge].flatten(1).amax(dim=1))

    def _maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """How far the student is from the teacher, and from the auto-encoder: two (B, h, w)."""
        image = normalised(image)
        first, second = self.student(image).split(self.config.dim, dim=1)
        return (
            (self._taught(image) - first).square().mean(dim=1),
            (self.autoencoder(image) - second).square().mean(dim=1),
        )

    @torch.no_grad()
    def _taught(self, image: Tensor) -> Tensor:
        """The teacher's features, each in units of its deviation over the good pictures."""
        return (self.teacher(image) - self.mean_D11) / self.std_D11


class PDN(nn.Module):
    """The patch description network (tables 6 and 7): each feature sees 33 x 33 pixels, and nothing beyond the edge."""

    def __init__(self, kind: str, width: int, dim: int) -> None:
        super().__init__()
        if kind not in ("small", "medium"):
            raise UsageError(f"efficientad: pdn is {kind!r}; it is small or medium")
        wide, pool, relu = 2 * width, nn.AvgPool2d(2, 2), nn.ReLU()
        layers = [nn.Conv2d(3, width, 4), relu, pool, nn.Conv2d(width, wide, 4), relu, pool]
        if kind == "small":
            layers += [nn.Conv2d(wide, wide, 3), relu, nn.Conv2d(wide, dim, 4)]
        else:
            layers += [nn.Conv2d(wide, wide, 1), relu, nn.Conv2d(wide, wide, 3), relu]
            layers += [nn.Conv2d(wide, dim, 4), relu, nn.Conv2d(dim, dim, 1)]
        self.trunk, self.last = nn.Sequential(*layers[:-1]), layers[-1]

    def forward(self, image: Tensor, part: slice | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w), or some of the features alone."""
        feat = self.trunk(image)
        if part is None:
            return self.last(feat)
        weight, bias = self.last.parameters()
        return F.conv2d(feat, weight[part], bias[part])

    def grid(self, size: int) -> int:
        """Features along a side of `size` pixels."""
        return (((size - 3) // 2 - 3) // 2) - 5


class AutoEncoder(nn.Module):
    """The picture through a bottleneck of one place: what is left is how a part looks as a whole (table 8)."""

    def __init__(self, width: int, dim: int, size: int, grid: int) -> None:
        super().__init__()
        if size % 32 or size < 64:
            raise UsageError(f"efficientad: size is {size}; it must be a multiple of 32, and at least 64")
        wide = 2 * width
        widths = [3, width, width, wide, wide, wide]
        down = [(nn.Conv2d(i, o, 4, 2, 1), nn.ReLU()) for i, o in itertools.pairwise(widths)]
        self.encoder = nn.Sequential(*itertools.chain(*down), nn.Conv2d(wide, wide, size // 32))
        # 3, 8, 15, 32, 63, 127 at 256 pixels
        self.sides = [max(1, size // d - odd) for d, odd in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))]
        self.decoder = nn.ModuleList(nn.Conv2d(wide, wide, 4, 1, 2) for _ in self.sides)
        self.out, self.grid = (
            nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1), nn.ReLU(), nn.Conv2d(wide, dim, 3, 1, 1)),
            grid,
        )

    def forward(self, image: Tensor) -> Tensor:
        feat = self.encoder(image)
        for side, conv in zip(self.sides, self.decoder, strict=True):
            feat = F.dropout(F.relu(conv(resized(feat, side))), 0.2, self.training)
        return self.out(resized(feat, self.grid))


def hardest(gap_BDhw: Tensor) -> Tensor:
    """The mean of each picture's differences from the quantile HARD up (equation 1), then over the pictures."""
    count = gap_BDhw[0].numel()
    kept = count - math.ceil(HARD * (count - 1))
    return gap_BDhw.flatten(1).topk(kept, dim=1).values.mean()


def jittered(image: Tensor) -> Tensor:
    """Each picture with another brightness, contrast or saturation, by a factor from 0.8 to 1.2."""
    from torchvision.transforms.v2 import functional as T

    changes = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation)
    kinds, factors = torch.randint(3, (len(image),)), torch.empty(len(image)).uniform_(0.8, 1.2)
    drawn = zip(image, kinds.tolist(), factors.tolist(), strict=True)
    return torch.stack([changes[kind](one, factor) for one, kind, factor in drawn])


def normalised(image: Tensor) -> Tensor:
    mean_C11, std_C11 = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (MEAN, STD))
    return (image - mean_C11) / std_C11


def resized(feat: Tensor, side: int) -> Tensor:
    return F.interpolate(feat, size=(side, side), mode="bilinear", align_corners=False)


def load_teacher(teacher: PDN, config: EfficientAD.Config) -> tuple[str, str]:
    """Fills the teacher; returns where it came from and its SHA-256. UsageError: there is none of that shape."""
    import hashlib

    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    shape = {"pdn": config.pdn, "width": config.width, "dim": config.dim}
    path = Path(config.teacher) if config.teacher else embedded(shape)
    if path is None:
        options = f"--pdn {config.pdn} --width {config.width} --dim {config.dim}"
        stages = " --stages 2,3,4" if config.dim > EMBEDDED_DIM else ""  # else there are not so many features
        raise UsageError(
            f"efficientad needs a teacher of this shape ({options}): make one from any photos with flawmap distill "
            f"PHOTOS --out teacher.safetensors {options}{stages}, and give it as --teacher teacher.safetensors; or "
            "take --preset small, whose teacher is embedded"
        )
    try:
        content = path.read_bytes()
        state = load(content)
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get("flawmap", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: not a teacher made by flawmap distill ({error})") from error
    if {key: found.get(key) for key in shape} != shape:
        made = ", ".join(f"{key} {found.get(key)}" for key in shape)
        raise UsageError(f"{path}: a teacher of {made}; asked for {', '.join(f'{k} {v}' for k, v in shape.items())}")
    try:
        teacher.load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        raise DataError(f"{path}: its tensors are not those of a teacher of its shape") from error
    origin = "embedded" if not config.teacher else f"file {path.name}"
    return f"{origin}: {found.get('backbone', '?')} on {found.get('photos', '?')}", hashlib.sha256(content).hexdigest()


def embedded(shape: dict[str, object]) -> Path | None:
    """The teacher that comes with the package, where one has that shape."""
    path = (
        Path(str(resources.files("flawmap"))) / "detectors" / "teacher-{pdn}-{width}-{dim}.safetensors".format(**shape)
    )
    return path if path.exists() else None
