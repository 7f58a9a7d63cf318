"""The pool: which GPU a vGPU is a slice of."""
