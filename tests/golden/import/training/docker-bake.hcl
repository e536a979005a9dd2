# Images of a training framework: a base, the framework on it, and a server.
variable "REGISTRY" { default = "registry.example.org/ml" }
variable "VERSION" { default = "2025.1" }
variable "CUDA" { default = "12.8" }
variable "RELEASE" { default = false }
variable "MAX_JOBS" { default = 8 }

function "tags_of" {
  params = [name]
  result = RELEASE ? ["${REGISTRY}/${name}:${VERSION}", "${REGISTRY}/${name}:latest"] : [
    "${REGISTRY}/${name}:${VERSION}",
  ]
}

group "default" {
  targets = ["framework", "server"]
}

# For docker/metadata-action.
target "docker-metadata-action" {
  tags = ["app:local"]
}

target "_common" {
  dockerfile = "docker/Dockerfile.gpu"
  platforms  = ["linux/arm64", "linux/amd64"]
  args = {
    CUDA     = CUDA
    MAX_JOBS = MAX_JOBS
    ARCHS    = join(";", ["9.0", "10.0"])
    UNUSED   = null
    BUILT    = timestamp()
  }
  labels     = { "org.opencontainers.image.source" = "https://example.org" }
  cache-from = ["type=registry,ref=${REGISTRY}/cache"]
  cache-to   = ["type=registry,ref=${REGISTRY}/cache"]
}

target "base" {
  inherits = ["_common"]
  target   = "base"
  tags     = ["${REGISTRY}/base:${CUDA}"]
}

target "framework" {
  inherits = ["docker-metadata-action", "_common"]
  target   = "framework"
  contexts = {
    base   = "target:base"
    flash  = "docker-image://nvcr.io/nvidia/pytorch:25.01-py3"
    shell  = "docker-image://busybox:1.36"
    common = "docker/common"
    remote = "https://example.org/sources.git"
  }
  args   = { MAX_JOBS = 16, FLAGS = "-O2 # not a comment" }
  secret = ["type=env,id=hf,env=HF_TOKEN", "id=netrc,src=docker/netrc"]
  ssh    = ["default"]
  tags   = concat(tags_of("framework"), ["${REGISTRY}/framework:${replace(VERSION, ".", "-")}"])
}

target "server" {
  context    = "server"
  dockerfile = VERSION == "2025.1" ? "Dockerfile" : "Dockerfile.next"
  tags       = tags_of("server")
  network    = "host"
}

target "docs" {
  dockerfile-inline = <<EOT
FROM scratch
EOT
}

target "riscv" {
  inherits  = ["base"]
  platforms = ["linux/riscv64"]
}

target "wheel" {
  context = "https://example.org/wheel.git#main"
}
