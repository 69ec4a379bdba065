"""Policy smoothing: what a policy that acts on noisy observations earns at least, whatever an adversary adds to them.

A policy sees o_t + e_t, e_t ~ N(0, sigma^2 I) fresh at every step; the environment's state has no noise. An adversary who knows
everything but the noise to come adds delta_t with sqrt(sum over the episode of |delta_t|^2) <= B. Whatever event of the episode
has probability p without the adversary has at least Phi(Phi^-1(p) - B / sigma) with it, so from n episodes without one:

    P(return >= r)   >= Phi(Phi^-1(p) - B / sigma),  p the one-sided Clopper-Pearson lower bound
    E[return]        >= v_0 + sum over i of (v_i - v_(i-1)) Phi(Phi^-1(S_i) - B / sigma),  S_i a lower bound of P(return >= v_i)

v_0 is a number below which no return can fall. The bounds S_i hold together: for returns in whole numbers by Clopper-Pearson at
alpha over the number of thresholds, v_i = v_0 + i; for others by Dvoretzky-Kiefer-Wolfowitz at the returns that were seen.
The certificate is of the policy with its noise, not of its likeliest action without; both bounds hold with confidence 1 - alpha.

Source: Kumar, Levine, Feizi 2022 (arXiv:2106.11420), theorem 1 and section 4; Massart 1990 for the constant of the band.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from upslope.errors import UsageError

Floats = NDArray[np.float64]
Band = Literal["clopper-pearson", "dkw"]


def clopper_pearson(successes: ArrayLike, trials: int, alpha: float) -> Floats:
    """One-sided lower bounds of probabilities, at confidence 1 - alpha each, from `successes` [...] of `trials`; 0 for none.

    Raises UsageError where there are more successes than trials, or alpha is not between 0 and 1.
    """
    k = np.asarray(successes, dtype=np.float64)
    _check_alpha(alpha)
    if trials < 1 or (k < 0).any() or (k > trials).any():
        raise UsageError(
            f"{k.max():g} successes of {trials} trials were given. Give 0 <= successes <= trials, trials >= 1."
        )
    found: Floats = np.where(k > 0, beta.ppf(alpha, np.maximum(k, 1), trials - k + 1), 0.0)
    return found


def dkw_width(trials: int, alpha: float) -> float:
    """How far an empirical distribution function of `trials` draws is from the true one at most, with confidence 1 - alpha."""
    _check_alpha(alpha)
    return math.sqrt(math.log(2 / alpha) / (2 * trials))


def under_attack(probability: ArrayLike, budget: float, sigma: float) -> Floats:
    """Phi(Phi^-1(p) - budget / sigma): the least that is left of probabilities [...] within an l2 budget over the episode.

    Raises UsageError for a negative budget, or a sigma that is not above 0.
    """
    if not sigma > 0 or not budget >= 0:
        raise UsageError(
            f"a certificate needs sigma above 0 and a budget of at least 0; they are {sigma:g} and {budget:g}."
        )
    found: Floats = ndtr(ndtri(np.asarray(probability, dtype=np.float64)) - budget / sigma)
    return found


def summed(lowest: float, values: ArrayLike, survival: ArrayLike) -> float:
    """E of a number of at least `lowest`, from P(it >= values_i) [m] at rising `values` [m]; a lower bound from lower bounds."""
    return float(lowest + (np.diff(np.asarray(values), prepend=lowest) * np.asarray(survival)).sum())


@dataclass(frozen=True)
class Certificate:
    """What n episodes without an adversary say about those with one; made by `certify`.

    values, survival    thresholds v_1 < ... < v_m and lower bounds of P(return >= v_i) without an adversary, together at 1 - alpha
    band                which bounds they are
    lowest              v_0
    clean, error        the mean return without an adversary and its standard error
    """

    returns: Floats
    sigma: float
    alpha: float
    lowest: float
    band: Band
    values: Floats
    survival: Floats

    @property
    def clean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    @property
    def error(self) -> float:
        """Its standard error."""
        return float(self.returns.std(ddof=1) / math.sqrt(len(self.returns)))

    def expected_return(self, budget: float) -> float:
        """The certified mean return; `lowest` where nothing is certified."""
        return summed(self.lowest, self.values, under_attack(self.survival, budget, self.sigma))

    def probability(self, threshold: float, budget: float) -> float:
        """The certified P(return >= threshold), at confidence 1 - alpha for this threshold alone; fix it before the returns are
        seen.
        """
        reached = int((self.returns >= threshold).sum())
        return float(under_attack(clopper_pearson(reached, len(self.returns), self.alpha), budget, self.sigma))


def certify(
    returns: ArrayLike, sigma: float, *, lowest: float, most: int | None = None, alpha: float = 0.05
) -> Certificate:
    """The certificate of a policy with noise `sigma` from the returns [n] of independent episodes without an adversary.

    lowest   no return can be below it, with an adversary either
    most     for returns in whole numbers: thresholds lowest + 1 to lowest + most, a number that was fixed before the returns were
             seen (what lies above is not counted); None: at the returns that were seen, by the band
    Raises UsageError where a return is below `lowest`, or there are too few to certify anything: if every episode had reached a
    threshold, its lower bound would still be below one half.
    """
    found = np.sort(np.asarray(returns, dtype=np.float64))
    n = len(found)
    if not sigma > 0:
        raise UsageError(f"sigma is {sigma:g}; a certificate needs noise on the observations, sigma above 0.")
    if n and found[0] < lowest:
        raise UsageError(
            f"a return of {found[0]:g} was seen, below lowest={lowest:g}. Give a number that none can be below."
        )
    least = fewest(most, alpha)
    if n < least:
        raise UsageError(
            f"{n} episodes cannot certify anything at alpha={alpha:g}: take at least {least}, better 10000."
        )
    if most is None:
        values = np.unique(found)
        values = values[values > lowest]
        share = (n - np.searchsorted(found, values)) / n
        survival, band = np.maximum(0.0, share - dkw_width(n, alpha)), "dkw"
    else:
        values = lowest + np.arange(1.0, most + 1)
        survival, band = clopper_pearson(n - np.searchsorted(found, values), n, alpha / most), "clopper-pearson"
    return Certificate(np.asarray(returns, dtype=np.float64), sigma, alpha, lowest, band, values, survival)  # type: ignore[arg-type]


def fewest(most: int | None, alpha: float) -> int:
    """Episodes from which on a bound can exceed one half: `most` thresholds by Clopper-Pearson, None by the band."""
    _check_alpha(alpha)
    if most is None:
        return math.floor(2 * math.log(2 / alpha)) + 1
    return math.floor(math.log(most / alpha) / math.log(2)) + 1


def whole(returns: Sequence[float] | Floats) -> bool:
    """Whether all are whole numbers."""
    found = np.asarray(returns)
    return bool((found == np.round(found)).all())


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise UsageError(f"alpha is {alpha:g}; it is the chance of being wrong, between 0 and 1, such as 0.05.")
