"""Fixtures of the tests of this folder."""

from tests.support.scored_images import few_draws, images, images_of_two_datasets, make_scored  # noqa: F401  # fixtures
