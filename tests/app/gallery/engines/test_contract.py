"""The engines' indexes do what every kind of index does."""

from tests.app.gallery.index.test_contract import *  # noqa: F403
