"""Arrays, textures, surfaces and tensor maps: codes 190 to 229."""
