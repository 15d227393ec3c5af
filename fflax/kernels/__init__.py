"""Products written by hand for one kind of machine, each beside the reference that defines it."""
