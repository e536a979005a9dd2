"""What a clone takes from the official checkout, and whose files it takes."""
