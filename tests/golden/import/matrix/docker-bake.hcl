# A product of texts: one project with a [matrix].
target "torch" {
  name = "torch-${replace(cuda, ".", "-")}-py${replace(python, ".", "")}"
  matrix = {
    cuda   = ["12.8", "13.0"]
    python = ["3.11", "3.12"]
  }
  context    = "torch"
  dockerfile = "Dockerfile.${python}"
  target     = "cuda"
  args = {
    CUDA   = cuda
    PYTHON = python
    IMAGE  = "nvidia/cuda:${cuda}-devel"
  }
  tags = ["example/torch:${cuda}-py${python}"]
}

# Without tags, the images are versions of the target.
target "tools" {
  name    = "tools-${flavour}"
  matrix  = { flavour = ["small", "full"] }
  context = "tools"
  target  = flavour
}

# A table for each image: project.toml has no axis for it, so each gets a project.
target "agent" {
  name = "agent-${item.name}"
  matrix = {
    item = [
      { name = "cpu", base = "debian:12", extra = "" },
      { name = "gpu", base = "nvidia/cuda:13.0.0-base", extra = "gpu" },
    ]
  }
  context = "agent"
  args    = { BASE = item.base, EXTRA = item.extra }
  tags    = ["example/agent:${item.name}"]
}

# The value is not the axis alone, so each gets a project.
target "docs" {
  name     = "docs-${language}"
  matrix   = { language = ["en", "de"] }
  context  = "tools"
  args     = { LANGUAGE = upper(language) }
  contexts = { torch = "target:torch-12-8-py311" }
}
