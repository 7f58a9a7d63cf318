"""What the controller keeps in its database."""
