"""What a computation costs: operations, bytes, memory and modelled energy."""
