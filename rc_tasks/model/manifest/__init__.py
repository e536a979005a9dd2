"""What is inside an image: packages and their versions, and how two images differ."""
