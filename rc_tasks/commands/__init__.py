"""One module per doit command, beyond doit's own or in place of one of them."""
