"""What crosses a process boundary: the API spec, the generator, the frame and ring layout, control messages."""
