"""What a step says when it ends, for whoever reads its log."""

# The last thing in the log of a step that failed with an error of ours; what follows is its text.
FAILED = "== failed"
# The same, where the lines of a tool just above say why.
FAILED_AS_ABOVE = "== failed, as told above"
