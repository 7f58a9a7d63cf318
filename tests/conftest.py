"""For all tests: hypothesis takes the same examples in every run, so that a change is judged by what it changes.

New examples: `python -m pytest --hypothesis-profile=default tests/controller`.
"""

import signal

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# A shell makes a background job ignore SIGINT, and programs started here would inherit that: some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
