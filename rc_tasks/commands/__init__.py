"""Commands of `doit`: one module for each command that is new or replaces one of doit's own."""
