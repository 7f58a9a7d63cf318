"""Stream capture and graphs: codes 80 to 129."""
