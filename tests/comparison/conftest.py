"""Fixtures of the tests of this folder."""

from tests.support.scored_images import few_draws  # noqa: F401  # a fixture
