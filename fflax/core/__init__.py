"""Pure mathematics: goodness, losses, normalisation, labels, prototypes, readouts, locality."""
