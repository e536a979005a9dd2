"""The page of `doit report`."""
