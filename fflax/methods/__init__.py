"""Methods: one file per paper, each a factory `config, num_classes -> Method`."""
