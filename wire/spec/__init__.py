"""The declarative specification: operations of the ring (`ops`) and functions of the driver API (`functions`)."""
