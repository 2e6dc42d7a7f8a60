"""Has the line changed since the calibration? One bet for each recipe, over the parts that pass."""

from __future__ import annotations

from flawmap.station.recipes import Recipe, Recipes
from flawmap.verdict.drift import Martingale

BET = 100_000  # parts, after which a bet starts anew: it remembers every score


class Drifts:
    """Bets by calibration, of the recipes that are loaded."""

    def __init__(self, recipes: Recipes) -> None:
        self._recipes = recipes
        self._bets: dict[str, Martingale] = {}

    def of(self, recipe: Recipe) -> Martingale | None:
        """None before the first part that passed."""
        return self._bets.get(recipe.calibration)

    def add(self, recipe: Recipe, score: float) -> None:
        key, calibration = recipe.calibration, recipe.model.calibration
        assert calibration is not None
        bet = self._bets.get(key)
        if bet is None or len(bet.scores) >= BET:
            loaded = {self._recipes.get(name).calibration for name in self._recipes.names} | {key}
            self._bets = {old: kept for old, kept in self._bets.items() if old in loaded}
            bet = self._bets[key] = Martingale.of(calibration)
        bet.add(score)
