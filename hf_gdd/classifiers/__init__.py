"""Networks, augmentation and the only classifier training in the library."""
