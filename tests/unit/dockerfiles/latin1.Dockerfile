FROM a
# Grьяe
