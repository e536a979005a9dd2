"""One module per outside program: values in, argv out, tool output back to values."""
