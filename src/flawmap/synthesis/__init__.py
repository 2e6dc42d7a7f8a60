"""A good picture -> the same picture with a known false defect."""

from flawmap.synthesis.paint import PRESETS, Painted, Synthesis, Texture

__all__ = ["PRESETS", "Painted", "Synthesis", "Texture"]
