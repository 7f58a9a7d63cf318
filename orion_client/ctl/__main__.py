"""`python -m orion_client.ctl`."""

from orion_client.ctl import main

main()
