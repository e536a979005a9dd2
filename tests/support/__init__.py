"""What several tests stand on: real services that a test session starts and ends."""
