"""What holds for all tests.

Random tests print what replays them (`print_blob`) and have no deadline: a timing is never a pass criterion. A longer run:
HYPOTHESIS_PROFILE=long make test.
"""

import os

from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True, max_examples=100)
settings.register_profile("long", settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
