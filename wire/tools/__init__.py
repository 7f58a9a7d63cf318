"""Developer tools around the spec; nothing here is needed to build."""
