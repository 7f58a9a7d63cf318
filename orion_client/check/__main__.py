"""`python -m orion_client.check`."""

from orion_client.check import main

main()
