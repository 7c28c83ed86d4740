"""Fixtures of the tests of this folder."""

from tests.support.scored_images import few_draws, make_scored  # noqa: F401  # fixtures
