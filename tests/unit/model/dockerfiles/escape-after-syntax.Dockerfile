#syntax=docker/dockerfile:1
# ESCAPE = `
FROM a`
:1
