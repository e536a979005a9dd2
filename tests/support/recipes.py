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

# A stack on the bases of a vendor, for which an image of the checkout stands in, so that no registry is
# needed. Directories of Dockerfiles have names that no image can have.
STACK_FILES: Mapping[str, str] = {
    ".gitignore": ".rc/\n*.sqsh\nimage.json\n",
    "rc_tasks.toml": "top_projects = false\n",
    # The version of the base is an argument without a default, and a path of COPY.
    "Stack/base/Containerfile.cuda": (
        "# syntax=docker/dockerfile:1\n"
        "ARG BASE_IMAGE\n"
        "FROM ${BASE_IMAGE}\n"
        'SHELL ["/bin/sh", "-eu", "-c"]\n'
        'ARG VARIANT=""\n'
        "COPY Stack/common/ /opt/common/\n"
        "COPY Stack/variants/${VARIANT}/ /opt/variant/\n"
    ),
    "Stack/common/setup.sh": "echo set up: $1\n",
    "Stack/variants/one/profile.env": "NAME=one\n",
    "Stack/variants/two/profile.env": "NAME=two\n",
    "Stack/variants/three/profile.env": "NAME=three\n",
    "Stack/apps/train/Containerfile": (
        "ARG BASE_IMAGE\n"
        "FROM ${BASE_IMAGE}\n"
        'ARG REVISION="unknown"\n'
        'LABEL revision="${REVISION}"\n'
        "RUN sh /opt/common/setup.sh train > /opt/log\n"
        "COPY Stack/apps/train/tests/ /opt/tests/\n"
    ),
    "Stack/apps/train/tests/run.sh": "#!/bin/sh\n",
    "Stack/apps/serve/Containerfile": (
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY Stack/apps/serve/settings /opt/settings\n"
    ),
    "Stack/apps/serve/settings": "port = 80\n",
    # Several targets, and the whole repository as a stage that a RUN mounts.
    "Docker/Dockerfile": (
        "ARG BASE_IMAGE=vendor.example/torch:one\n"
        "FROM ${BASE_IMAGE} as deps\n"
        "COPY requirements .\n"
        "FROM scratch as source\n"
        "COPY . .\n"
        "FROM deps as full\n"
        # A blank may follow the sign of continuation.
        "RUN \\  \n"
        "  --mount=from=source,target=/mnt/source,rw \\\n"
        "  cd /mnt/source && touch built && ls -A > /opt-files\n"
    ),
    "requirements/base.txt": "numpy\n",
    ".dockerignore": "**/*.log\n*,cover\n",
    # An argument chooses the stage, which has triggers.
    "Docker/Dockerfile.fetch": (
        "ARG REMOTE=1\n"
        "ARG BASE=vendor.example/torch:one\n"
        "FROM ${BASE} AS base\n"
        "FROM base AS fetch_0\n"
        "ONBUILD COPY requirements /fetched\n"
        "FROM base AS fetch_1\n"
        "ONBUILD RUN mkdir /fetched && echo remote > /fetched/remote.txt\n"
        "FROM fetch_${REMOTE} AS fetch\n"
        "FROM scratch AS export\n"
        "COPY --from=fetch /fetched/*.txt /\n"
        "FROM base\n"
        "RUN --mount=type=bind,from=export,src=/,target=/install ls /install > /installed\n"
    ),
    # The base is named as it is pushed, and built here.
    "Docker/release 1/Dockerfile.base": 'from "vendor.example/torch:one"\nRUN echo base > /base\n',
    "Docker/release 1/Dockerfile.app": "FROM lab/stack:base-r1\nRUN cp /base /app\n",
    "Tools/image/Containerfile": (
        'ARG BASE_IMAGE=vendor.example/torch:one\nFROM ${BASE_IMAGE}\nLABEL title="tools"\n'
    ),
    "projects/standin/Dockerfile": "FROM scratch\nCOPY bin /bin\n",
    "projects/standin/bin/readme": "programs\n",
    "projects/stack/project.toml": """\
dockerfile = "../../Stack/base/Containerfile.cuda"
context = "../.."
build_args = { BASE_IMAGE = "vendor.example/torch:{variant}", VARIANT = "{variant}" }

[matrix]
variant = ["one", "two"]

[contexts]
"vendor.example/torch:{variant}" = "image:standin"
""",
    "projects/stack:latest": "-> stack:two",
    # One more version, which differs in more than its name.
    "projects/stack:three/project.toml": """\
dockerfile = "../../Stack/base/Containerfile.cuda"
context = "../.."
build_args = { BASE_IMAGE = "standin", VARIANT = "three" }
""",
    "projects/app/project.toml": """\
dockerfile = "../../Stack/apps/{app}/Containerfile"
context = "../.."
ignorefile = "files.{app}"
build_args = { BASE_IMAGE = "stack:one" }

[matrix]
app = ["train", "serve"]
""",
    "projects/app/files.train": "*\n!Stack/apps/train\n",
    "projects/app/files.serve": "*\n!Stack/apps/serve\n",
    "projects/full/project.toml": """\
dockerfile = "../../Docker/Dockerfile"
context = "../.."
contexts = { "vendor.example/torch:one" = "image:standin" }
""",
    "projects/full:deps/project.toml": """\
dockerfile = "../../Docker/Dockerfile"
context = "../.."
target = "deps"
contexts = { "vendor.example/torch:one" = "image:standin" }
""",
    "projects/fetch/project.toml": """\
dockerfile = "../../Docker/Dockerfile.fetch"
context = "../../requirements"
build_args = { REMOTE = "{remote}" }
contexts = { "vendor.example/torch:one" = "image:standin" }

[matrix]
remote = [1]
""",
    "projects/lab:base-r1/project.toml": """\
dockerfile = "../../Docker/release 1/Dockerfile.base"
contexts = { "vendor.example/torch:one" = "image:standin" }
""",
    "projects/release-1/project.toml": """\
dockerfile = "../../Docker/release 1/Dockerfile.{part}"
contexts = { "lab/stack:base-r1" = "image:lab:base-r1" }

[matrix]
part = ["app"]
""",
    "projects/tools/project.toml": """\
context = "../../Tools/image"
contexts = { "vendor.example/torch:one" = "image:standin" }
""",
}
# The images of the stack, each with its bases.
STACK_BASES: Mapping[str, tuple[str, ...]] = {
    "standin": (),
    "stack:one": ("standin",),
    "stack:two": ("standin",),
    "stack:three": ("standin",),
    "app:train": ("stack:one",),
    "app:serve": ("stack:one",),
    "full": ("standin",),
    "full:deps": ("standin",),
    "fetch:1": ("standin",),
    "lab:base-r1": ("standin",),
    "release-1:app": ("lab:base-r1",),
    "tools": ("standin",),
}
