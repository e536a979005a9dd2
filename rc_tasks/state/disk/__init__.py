"""Files that several hosts write: put in place, read with care, locked, and trusted or not."""
