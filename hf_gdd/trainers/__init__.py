"""One file a method; the loop they share is `hf_gdd.training`."""
