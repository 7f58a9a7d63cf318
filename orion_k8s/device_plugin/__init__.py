"""orion-device-plugin: the pool as a resource of every node."""
