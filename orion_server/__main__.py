"""`python -m orion_server` is orion-server."""

from orion_server.cli import main

main()
