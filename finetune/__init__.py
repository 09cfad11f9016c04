"""Stage three: the backbone learns too, starting from a head."""
