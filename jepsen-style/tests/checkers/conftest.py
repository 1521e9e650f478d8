"""The settings of random tests, as in the project's other tests: no deadlines, and `HYPOTHESIS_PROFILE=long`."""

import os

from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True, max_examples=100)
settings.register_profile("long", settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
