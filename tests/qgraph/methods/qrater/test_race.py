"""Races: who is dropped when, and what never is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qgraph.methods.qrater.race import Rules, race

BLOCKS = (32, 64, 128, 256, 512)
RULES = Rules(confidence=0.99, tolerance=0.002, keep=0.5)


class Field:
    """Candidates whose scores on every sample are known; counts what a race asks for."""

    def __init__(self, scores):
        self.scores, self.asked = scores, 0

    def __call__(self, chosen, first, end):
        self.asked += len(chosen) * (end - first)
        return [self.scores[c, first:end] for c in chosen]


def noisy(means, seed, spread=1.0):
    """Scores around these means; most of the noise is common to all candidates, as between samples."""
    rng = np.random.default_rng(seed)
    return np.array(means)[:, None] + rng.normal(size=512) * spread + rng.normal(size=(len(means), 512)) * spread / 3


def run(scores, rules=RULES, **options):
    field = Field(scores)
    return race(len(scores), BLOCKS, field, rules, **options), field


def test_the_best_wins_for_a_part_of_the_samples():
    right, asked = 0, 0
    for seed in range(40):
        outcome, field = run(noisy(-np.linspace(1, 3, 50), seed))
        right += outcome.winner <= 2
        asked += field.asked
    assert right >= 38
    assert asked < 0.3 * 40 * 50 * 512


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_units_do_not_matter(factor):
    """A race over a thousandth of the scores takes the same course: the tolerance is a share."""
    scores = noisy(-np.linspace(1, 1.2, 30), 3)
    (first, one), (second, other) = run(scores), run(scores * factor)
    assert (first.winner, one.asked) == (second.winner, other.asked)


def test_the_share_never_decides_between_two():
    """Candidate 0 is better by far, but behind on the first block by less than the test can tell."""
    scores = np.full((2, 512), -1.0)
    scores[1, :32] += np.where(np.arange(32) % 2, 0.3, -0.25)
    scores[1, 32:] -= 0.5
    outcome, field = run(scores)
    assert scores[1, :32].mean() > scores[0, :32].mean()
    assert outcome.winner == 0
    assert field.asked > 2 * 32


def test_what_is_defended_drops_out_by_the_test_alone():
    """The last of eight on the first block, best of all in the end."""
    rng = np.random.default_rng(0)
    scores = -2.0 + rng.normal(size=(8, 512)) * 0.01
    scores[0, :32] = -2.0 + np.where(np.arange(32) % 2, 0.5, -0.6)
    scores[0, 32:] = -1.0
    rules = dataclasses.replace(RULES, least=2)
    assert run(scores, rules)[0].winner != 0
    assert run(scores, rules, defended=(0,))[0].winner == 0
    scores[0] = -3.0
    lost, field = run(scores, rules, defended=(0,))
    assert lost.winner != 0
    assert field.asked < 8 * 32 + 8 * 512


def test_the_best_of_many_is_no_proof_against_what_is_defended():
    """Among 230 candidates chance leads by three standard errors; at 99% a test for one pair alone believes it."""
    kept = 0
    for seed in range(40):
        scores = noisy([-0.95, *[-1.0] * 230], seed, spread=0.6)
        kept += run(scores, defended=(0,))[0].winner == 0
    assert kept >= 39


def test_a_challenger_must_lead_after_every_round():
    """Candidate 1 is behind on the first block only: not sure to lose, but not worth more samples."""
    scores = noisy([-1.0, -1.0], 0, spread=0.1)
    scores[1] += 0.2
    scores[1, :32] = scores[0, :32] - np.where(np.arange(32) % 2, 0.2, -0.15)
    duel = dataclasses.replace(RULES, least=1)
    assert run(scores)[0].winner == 1
    outcome, field = run(scores, duel, defended=(0,))
    assert (outcome.winner, field.asked) == (0, 2 * 32)
    scores[1, :32] = scores[0, :32] + 0.01
    assert run(scores, duel, defended=(0,))[0].winner == 1


def test_equal_candidates_end_a_race_at_once():
    outcome, field = run(np.tile(noisy([-1.0], 0), (6, 1)))
    assert (outcome.winner, field.asked, outcome.decided) == (0, 6 * 32, False)


def test_equal_answers_are_no_certainty_where_a_sample_counts_as_one():
    """Accuracies: 32 of 32 right against 31 of 32 proves nothing yet."""
    scores = np.ones((2, 512))
    scores[0, 0] = 0
    scores[1, 32:64] = 0
    rules = Rules(confidence=0.99, tolerance=0.002, unit=1.0, keep=0.5)
    assert run(scores, rules)[0].winner == 0
