"""What each step made from what: digests of inputs, records, and the words for their differences."""
