target "app" {
  args = { DEBUG = true }
}
