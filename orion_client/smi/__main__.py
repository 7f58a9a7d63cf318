"""`python -m orion_client.smi`."""

from orion_client.smi import main

main()
