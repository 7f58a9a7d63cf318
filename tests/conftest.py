"""For all tests: hypothesis takes the same examples in every run, so that a change is judged by what it changes.

New examples: `python -m pytest --hypothesis-profile=default tests/controller`.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
