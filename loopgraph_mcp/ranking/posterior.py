"""Ranks methods by text relevance, by what they gained where they were tried, and by how often they were passed over.

Gains are counted in noise floors (sigmas) of the context they were measured in, positive is better, so that a GPU's
thousandths and a laptop's hundredths mean the same. Each function is pure; every score can be printed as its parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

_NORMAL = NormalDist()

# In sigmas. Most changes lose a little (22 keeps of 125 in a published overnight run), so the prior does as well.
PRIOR_MEAN, PRIOR_MEAN_SD = -1.2, 1.0
METHOD_SD = 2.0
GAIN_CLIP = 8.0
HALF_LIFE_EXPERIMENTS = 300
HALF_LIFE_RETRIEVALS = 20
PRIOR_BOUND = 2.0  # what others published of such changes is weak evidence
TOLD_BOUND = 2.0  # what others measured must not put a method before those that a query is about
ODDS_BOUND = 8.0


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured gain of a method.

    Args:
        gain: Improvement over the parent, in sigmas.
        n_parent: Runs behind the parent's mean.
        n_child: Runs behind the child's mean.
        age: Experiments made since.
        kappa: How far its context counts here: 1 the same, 0.5 another scale, 0.25 literature, 0.1 another device's.
        shared: Methods in the same edit, which share the credit.
    """

    gain: float
    n_parent: int = 1
    n_child: int = 1
    age: int = 0
    kappa: float = 1.0
    shared: int = 1

    @property
    def variance(self) -> float:
        """Noise of the gain, in sigmas squared."""
        return 1 / self.n_parent + 1 / self.n_child

    @property
    def weight(self) -> float:
        """How far this observation counts."""
        return max(0.25, float(2 ** (-self.age / HALF_LIFE_EXPERIMENTS))) * self.kappa / self.shared

    @property
    def clipped_gain(self) -> float:
        """The gain, with outliers drawn in."""
        return min(max(self.gain, -GAIN_CLIP), GAIN_CLIP)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one method: its gains, how often it crashed, and how long ago it was shown untried."""

    observations: tuple[Observation, ...] = ()
    crashes: int = 0
    shown_ages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Posterior:
    """The belief about a method's true gain, normal, in sigmas."""

    mean: float
    sd: float

    @property
    def p_win(self) -> float:
        """Probability that the method gains at all."""
        return _NORMAL.cdf(self.mean / self.sd)

    @property
    def expected_improvement(self) -> float:
        """Expected gain if losses are thrown away, in sigmas."""
        z = self.mean / self.sd
        return self.mean * _NORMAL.cdf(z) + self.sd * _NORMAL.pdf(z)


@dataclass(frozen=True, slots=True)
class Score:
    """A method's score and its parts: score = relevance * reward**0.7 * fatigue * prior."""

    score: float
    relevance: float
    reward: float
    fatigue: float
    prior: float
    posterior: Posterior
    p_ok: float

    def parts(self) -> dict[str, float]:
        """Return the parts by name, rounded for reading."""
        values = {
            "relevance": self.relevance,
            "reward": self.reward,
            "fatigue": self.fatigue,
            "prior": self.prior,
            "mean_gain_sigmas": self.posterior.mean,
            "sd_sigmas": self.posterior.sd,
            "p_win": self.posterior.p_win,
            "p_ok": self.p_ok,
        }
        return {name: round(value, 4) for name, value in values.items()}


def family_mean(observations: Sequence[Observation]) -> float:
    """Return the mean gain to expect of a family's next method, in sigmas, shrunken to the prior."""
    precision, weighted = PRIOR_MEAN_SD**-2, PRIOR_MEAN * PRIOR_MEAN_SD**-2
    for seen in observations:
        information = seen.weight / (seen.variance + METHOD_SD**2)
        precision += information
        weighted += information * seen.clipped_gain
    return weighted / precision


def posterior(observations: Sequence[Observation], *, prior_mean: float = PRIOR_MEAN) -> Posterior:
    """Return the belief about a method's gain after its observations."""
    precision, weighted = METHOD_SD**-2, prior_mean * METHOD_SD**-2
    for seen in observations:
        information = seen.weight / seen.variance
        precision += information
        weighted += information * seen.clipped_gain
    return Posterior(mean=weighted / precision, sd=precision**-0.5)


_PRIOR_REWARD = posterior(()).expected_improvement * 0.9


def fatigue(shown_ages: Sequence[int]) -> float:
    """Return the factor in [0.3, 1] for a method shown again and again and never tried; it recovers with time."""
    if not shown_ages:
        return 1.0
    shown = math.fsum(2 ** (-age / HALF_LIFE_RETRIEVALS) for age in shown_ages)
    return max(0.3, 1 / (1 + 0.25 * shown))


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What a method's evidence says of it, whatever was asked.

    Args:
        posterior: The belief about its gain.
        p_ok: The odds that it does not crash.
        reward: What its own trials here promise, beside an untried method.
        told: By how much what others told of it raises that.
    """

    posterior: Posterior
    p_ok: float
    reward: float
    told: float = 1.0

    @property
    def odds(self) -> float:
        """By how much the evidence raises the odds of a gain over those of a method of which nothing is known."""
        known, unknown = self.posterior.p_win, posterior(()).p_win
        ratio = known * (1 - unknown) / max((1 - known) * unknown, 1e-9)
        return min(max(ratio, 1 / ODDS_BOUND), ODDS_BOUND)


def appraise(observations: Sequence[Observation], crashes: int, *, prior_mean: float = PRIOR_MEAN) -> Appraisal:
    """Weigh a method's gains and crashes."""
    belief = posterior(observations, prior_mean=prior_mean)
    ok = sum(1 for seen in observations if seen.kappa > LITERATURE_KAPPA)
    p_ok = (9 + ok) / (10 + ok + crashes)
    return Appraisal(belief, p_ok, min(max(belief.expected_improvement * p_ok / _PRIOR_REWARD, 1 / 8), 8.0))


def score(relevance: float, evidence: Evidence, *, prior_mean: float = PRIOR_MEAN, log_ratio: float = 0.0) -> Score:
    """Score one method; relevance is in (0, 1]. An untried method in an untried family scores its relevance.

    `log_ratio`, of how often such changes are kept over how often any is, at most halves or doubles the score.
    """
    appraisal = appraise(evidence.observations, evidence.crashes, prior_mean=prior_mean)
    return explain(Candidate("", relevance, appraisal, evidence.shown_ages, log_ratio))


LITERATURE_KAPPA, OTHER_DEVICE_KAPPA = 0.25, 0.1


class Candidate(NamedTuple):
    """A method to be ranked, with what its evidence says of it."""

    method_id: str
    relevance: float
    appraisal: Appraisal
    shown_ages: Sequence[int] = ()
    log_ratio: float = 0.0

    def factors(self, told_bound: float) -> tuple[float, float, float]:
        """Return its reward, fatigue and prior; what others told moves the reward so far at most."""
        told = min(max(self.appraisal.told, 1 / told_bound), told_bound)
        prior = min(max(math.exp(self.log_ratio), 1 / PRIOR_BOUND), PRIOR_BOUND)
        return self.appraisal.reward * told, fatigue(self.shown_ages), prior


def rank(candidates: Sequence[Candidate], *, told_bound: float = TOLD_BOUND) -> list[tuple[str, float]]:
    """Return method ids with their scores, best first, ties by id; what others told moves a reward so far at most."""
    scored = sorted((-_total(each.relevance, *each.factors(told_bound)), each.method_id) for each in candidates)
    return [(method_id, -total) for total, method_id in scored]


def explain(candidate: Candidate, *, told_bound: float = TOLD_BOUND) -> Score:
    """Return a candidate's score with its parts."""
    reward, tired, prior = candidate.factors(told_bound)
    return Score(
        score=_total(candidate.relevance, reward, tired, prior),
        relevance=candidate.relevance,
        reward=reward,
        fatigue=tired,
        prior=prior,
        posterior=candidate.appraisal.posterior,
        p_ok=candidate.appraisal.p_ok,
    )


def _total(relevance: float, reward: float, tired: float, prior: float) -> float:
    return float(relevance * reward**0.7 * tired * prior)
