"""A checkout as people have them: Dockerfiles in a directory of their own, a context above, a matrix."""

from collections.abc import Mapping

# A library with its Dockerfiles in docker/, as most have it, images of which differ by arguments alone.
FILES: Mapping[str, str] = {
    ".gitignore": ".rc/\n*.sqsh\nimage.json\n",
    "docker/Dockerfile.base": "FROM scratch\nCOPY bin /bin\n",
    "docker/Dockerfile.app": (
        "ARG BASE=base\n"
        "FROM ${BASE}\n"
        "ARG CUDA=none\n"
        "ARG PYTHON=none\n"
        "COPY src /src\n"
        "RUN echo $CUDA $PYTHON > /which\n"
    ),
    "docker/Dockerfile.app.dockerignore": "*\n!src\n**/*.log\n",
    "docker/Dockerfile.docs": "FROM app:13.0-py3.12\nCOPY docs README.md /docs/\n",
    ".dockerignore": "src\nbuild\n",
    "README.md": "read me\n",
    "docs/index.md": "a page\n",
    "src/lib/module.py": "x = 1\n",
    "src/lib/test.log": "not in any image\n",
    "projects/base/project.toml": 'dockerfile = "../../docker/Dockerfile.base"\ncontext = "files"\n',
    "projects/base/files/bin/readme": "programs\n",
    "projects/app/project.toml": """\
dockerfile = "../../docker/Dockerfile.app"
context = "../.."
build_args = { CUDA = "{cuda}", PYTHON = "{python}" }

[matrix]
cuda = ["12.8", "13.0"]
python = ["3.10", "3.12"]
exclude = [{ cuda = "13.0", python = "3.10" }]
version = "{cuda}-py{python}"
""",
    "projects/app:latest": "-> app:13.0-py3.12",
    "projects/docs/project.toml": 'dockerfile = "../../docker/Dockerfile.docs"\ncontext = "../.."\n',
    "projects/user/Dockerfile": "ARG CUDA\nFROM app:${CUDA}-py3.12\nCOPY own /own\n",
    "projects/user/own": "own\n",
    "projects/user/project.toml": (
        'build_args = { CUDA = "{cuda}" }\n\n[matrix]\ncuda = ["12.8", "13.0"]\n'
    ),
}
APPS = ("app:12.8-py3.10", "app:12.8-py3.12", "app:13.0-py3.12")
USERS = ("user:12.8", "user:13.0")
IMAGES = ("base", *APPS, "docs", *USERS)
