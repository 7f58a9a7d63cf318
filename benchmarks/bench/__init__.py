"""The commands of `orion-bench`: what each measures, in which order, and how its rows become tables and a page."""
